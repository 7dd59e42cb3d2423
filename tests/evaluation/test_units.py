import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from senri.errors import SenriError
from senri.evaluation import Scratch, Unit, run_units
from senri.models import SenriConfig, SenriForCausalLM, Session


def unit(key, calls, result=None):
    def run(scratch):
        calls.append(key)
        scratch.advance(1)
        return {"key": key} if result is None else result

    return Unit(key, 2, run)


def test_results_come_in_the_units_order(tmp_path):
    calls = []
    done = run_units([unit(key, calls) for key in "abc"], "test", tmp_path, "me", progress=False)
    assert [result["key"] for result in done.results] == ["a", "b", "c"]
    assert (done.resumed, done.processes) == (0, 1)


def test_what_was_done_is_not_done_again(tmp_path):
    calls = []

    def fail(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_units([unit("a", calls), Unit("b", 1, fail)], "test", tmp_path, "me", progress=False)
    done = run_units([unit("a", calls), unit("b", calls)], "test", tmp_path, "me", progress=False)
    assert calls == ["a", "b"]
    assert done.resumed == 1
    assert [result["key"] for result in done.results] == ["a", "b"]


def test_results_of_another_measurement_are_dropped(tmp_path):
    calls = []
    run_units([unit("a", calls)], "test", tmp_path, "me", progress=False)
    done = run_units([unit("a", calls)], "test", tmp_path, "someone else", progress=False)
    assert calls == ["a", "a"]
    assert done.resumed == 0


def test_a_line_that_was_cut_off_is_done_again(tmp_path):
    calls = []
    run_units([unit("a", calls), unit("b", calls)], "test", tmp_path, "me", progress=False)
    path = tmp_path / "units-0.jsonl"
    path.write_text(path.read_text()[:-5])
    done = run_units([unit("a", calls), unit("b", calls), unit("c", calls)], "test", tmp_path, "me", progress=False)
    assert calls == ["a", "b", "b", "c"]
    again = run_units([unit("a", calls), unit("b", calls), unit("c", calls)], "test", tmp_path, "me", progress=False)
    assert again.results == done.results
    assert again.resumed == 3


def test_a_result_with_any_line_break_is_read_back(tmp_path):
    odd = {"said": "one\u2028two\x85three\x0bfour"}
    run_units([unit("a", [], odd)], "test", tmp_path, "me", progress=False)
    done = run_units([unit("a", [], odd)], "test", tmp_path, "me", progress=False)
    assert (done.resumed, done.results) == (1, [odd])


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_units([unit("a", [])], "test", progress=False).results == [{"key": "a"}]
    assert list(tmp_path.iterdir()) == []


def test_two_units_of_one_name_are_refused():
    with pytest.raises(SenriError, match="same name"):
        run_units([unit("a", []), unit("a", [])], "test", progress=False)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = SenriConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        sliding_window=8,
        default_layer_type="sliding_attention",
        memory_layers=[1],
        memory={"segment_length": 4, "gate_init": 0.0},
    )
    return SenriForCausalLM(config).eval()


def test_unfinished_reading_is_kept_and_found_again(tmp_path, model):
    ids = torch.randint(0, 50, (1, 30))
    session = Session(model)
    session.read(ids[:, :20])
    scratch = Scratch(tmp_path / "unfinished-x", 0.0, lambda work: None)
    assert scratch.kept(model) is None
    scratch.keep(session, lambda: {"tokens": 20})
    session.read(ids[:, 20:25])
    scratch.keep(session, lambda: {"tokens": 25})
    found, facts = Scratch(tmp_path / "unfinished-x", 0.0, lambda work: None).kept(model)
    assert facts == {"tokens": 25}
    torch.testing.assert_close(found.read(ids[:, 25:]), session.read(ids[:, 25:]))
    assert len(list(tmp_path.glob("*.senri"))) == 1
    scratch.clear()
    assert list(tmp_path.iterdir()) == []


def test_unfinished_reading_is_kept_only_now_and_then(tmp_path, model):
    session = Session(model)
    session.read(torch.zeros(1, 5, dtype=torch.int64))
    Scratch(tmp_path / "unfinished-x", 1000.0, lambda work: None).keep(session, dict)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_unfinished_reading_begins_anew(tmp_path, model):
    session = Session(model)
    session.read(torch.zeros(1, 5, dtype=torch.int64))
    scratch = Scratch(tmp_path / "unfinished-x", 0.0, lambda work: None)
    scratch.keep(session, dict)
    for path in tmp_path.glob("*.senri"):
        path.write_bytes(path.read_bytes()[:50])
    assert scratch.kept(model) is None


@pytest.mark.slow
def test_processes_share_the_units_and_all_get_all_results(tmp_path):
    script = tmp_path / "share.py"
    script.write_text(
        textwrap.dedent(
            """
            import json, sys
            from pathlib import Path
            from senri.evaluation import Unit, run_units
            from senri.evaluation.processes import process_state

            folder = Path(sys.argv[1])
            state = process_state()
            units = [Unit(str(n), 1, lambda _, n=n: {"n": n, "by": state.process_index}) for n in range(7)]
            done = run_units(units, "share", folder / "run", "me", progress=False)
            out = {"results": done.results, "resumed": done.resumed, "processes": done.processes}
            (folder / f"out-{state.process_index}.json").write_text(json.dumps(out))
            """
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script), str(tmp_path)]
    for wanted in (0, 7):
        subprocess.run(
            command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, timeout=200
        )
        first, second = (json.loads((tmp_path / f"out-{index}.json").read_text()) for index in (0, 1))
        assert first == second
        assert [result["n"] for result in first["results"]] == list(range(7))
        assert {result["by"] for result in first["results"]} == {0, 1}
        assert (first["processes"], first["resumed"]) == (2, wanted)
