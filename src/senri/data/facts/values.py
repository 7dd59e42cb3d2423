"""Values that are drawn at random and stand in no list: numbers, codes, times, dates, prices."""

import random
import string
import uuid
from collections.abc import Callable

_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTH_DAYS = {
    "January": 31,
    "February": 28,
    "March": 31,
    "April": 30,
    "May": 31,
    "June": 30,
    "July": 31,
    "August": 31,
    "September": 30,
    "October": 31,
    "November": 30,
    "December": 31,
}
_MONTHS = tuple(_MONTH_DAYS)
_UNITS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_COUNTS = (*_UNITS, *_TEENS, *(ten if unit is None else f"{ten}-{unit}" for ten in _TENS for unit in (None, *_UNITS)))
_HOURS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_MINUTES = (
    "five past",
    "ten past",
    "a quarter past",
    "twenty past",
    "half past",
    "twenty to",
    "a quarter to",
    "ten to",
)
_CURRENCIES = ("£{}", "${}", "€{}", "{} francs", "{} crowns", "{} dollars", "{} euros")
_PATTERN = {
    "@": string.ascii_uppercase,
    "#": string.digits,
    "&": string.ascii_lowercase + string.digits,
    "%": "0123456789abcdef",
}


def code(pattern: str, rng: random.Random) -> str:
    """Fill a pattern: `@` becomes a capital letter, `#` a digit, `&` a small letter or a digit, `%` a hex digit."""
    return "".join(rng.choice(_PATTERN[sign]) if sign in _PATTERN else sign for sign in pattern)


def _number(rng: random.Random) -> str:
    # Seven digits, as in the needle test, in half of all cases.
    digits = 7 if rng.random() < 0.5 else rng.randint(3, 10)
    return str(rng.randrange(10 ** (digits - 1), 10**digits))


def _time(rng: random.Random) -> str:
    # Hours at which things are open and people awake.
    hour, minute = rng.randint(6, 21), rng.randrange(60)
    on_dial = (hour - 1) % 12
    part = "in the morning" if hour < 12 else "in the afternoon" if hour < 18 else "in the evening"
    return rng.choice(
        (
            f"{rng.choice(_MINUTES)} {_HOURS[on_dial]} {part}",
            f"{on_dial + 1}:{minute:02d} {'am' if hour < 12 else 'pm'}",
            f"{on_dial + 1}.{minute:02d} {part}",
            f"{hour:02d}:{minute:02d}",
        )
    )


def _day(rng: random.Random) -> tuple[int, str]:
    month = rng.choice(_MONTHS)
    return rng.randint(1, _MONTH_DAYS[month]), month


def _date(rng: random.Random) -> str:
    day, month = _day(rng)
    return rng.choice((f"{day} {month}", f"{month} {day}", f"the {_ordinal(day)} of {month}"))


def _birth_date(rng: random.Random) -> str:
    (day, month), year = _day(rng), rng.randint(1920, 2010)
    return rng.choice((f"{day} {month} {year}", f"{month} {day}, {year}", f"the {_ordinal(day)} of {month} {year}"))


def _ordinal(day: int) -> str:
    ending = "th" if day in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{ending}"


def _price(rng: random.Random) -> str:
    whole = rng.randint(2, 999)
    amount = f"{whole}.{rng.randrange(5, 100, 5):02d}" if rng.random() < 0.5 else str(whole)
    return rng.choice(_CURRENCIES).format(amount)


VALUES: dict[str, Callable[[random.Random], str]] = {
    "birth_date": _birth_date,
    "count": lambda rng: rng.choice(_COUNTS),
    "date": _date,
    "letter": lambda rng: rng.choice(string.ascii_uppercase),
    "month": lambda rng: rng.choice(_MONTHS),
    "number": _number,
    "price": _price,
    "time": _time,
    "uuid": lambda rng: str(uuid.UUID(int=rng.getrandbits(128), version=4)),
    "weekday": lambda rng: rng.choice(_WEEKDAYS),
    "year": lambda rng: str(rng.randint(1700, 2020)),
}
"""What makes the value of a slot, by the slot's name."""
