"""`senri chat`: a conversation with what a session has read, line by line."""

from pathlib import Path

from senri.cli.generation import Conversation, GenerateSettings
from senri.cli.opening import check_session_place, open_model, open_session
from senri.settings import load_settings

_QUIT = "/quit"


def chat(*overrides: str, model: Path, session: Path, save: bool = False, config: Path | None = None) -> None:
    """Talk with what a session has read; /quit ends, the file stays as it is unless --save.

    Args:
        overrides: settings such as temperature=0.7.
        model: folder of the model that read the session.
        session: a session file.
        save: let the conversation become part of the session file.
        config: a YAML file of settings instead of config/generate.yaml.
    """
    settings = load_settings(GenerateSettings, config or "generate", overrides)
    check_session_place(session)
    loaded, tokenizer = open_model(model)
    import torch
    from rich.console import Console
    from transformers import TextStreamer

    torch.manual_seed(settings.seed)
    live = open_session(session, loaded)
    conversation = Conversation(tokenizer)
    prompt = Console(stderr=True)
    prompt.print(f"{live.tokens_read:,} tokens read. {_QUIT} ends.", style="dim")
    try:
        while True:
            if settings.clean_when_idle:
                live.clean(loaded.config.memory_config.clean_energy)
            prompt.print("> ", end="", style="bold")
            line = input()
            if line.strip() == _QUIT:
                break
            if line.strip():
                streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
                conversation.answered(live.generate(conversation.ask(line), streamer=streamer, **settings.arguments()))
    except EOFError:
        pass
    if save:
        live.save(session)
        prompt.print(f"kept in {session}.", style="dim")
