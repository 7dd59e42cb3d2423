"""`senri ask`: one question to what a session has read."""

from pathlib import Path

from senri.cli.generation import Conversation, GenerateSettings
from senri.cli.opening import open_model, open_session
from senri.settings import load_settings


def ask(
    question: str, *overrides: str, model: Path, session: Path, save: bool = False, config: Path | None = None
) -> None:
    """Ask what a session has read; the file stays as it is unless --save.

    Args:
        question: in quotation marks.
        overrides: settings such as max_new_tokens=50.
        model: folder of the model that read the session.
        session: a session file.
        save: let question and answer become part of the session file.
        config: a YAML file of settings instead of config/generate.yaml.
    """
    settings = load_settings(GenerateSettings, config or "generate", overrides)
    loaded, tokenizer = open_model(model)
    conversation = Conversation(tokenizer)
    prompt = conversation.ask(question)
    import torch

    torch.manual_seed(settings.seed)
    live = open_session(session, loaded)
    print(conversation.answered(live.generate(prompt, **settings.arguments())))
    if save:
        live.save(session)
