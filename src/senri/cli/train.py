"""`senri train`: run a recipe from a base to a trained model, and go on where it stopped."""

from senri.cli.interruption import Stopped


def train(*overrides: str, config: str) -> None:
    """Train a model by a recipe; the same command goes on where it stopped.

    Ctrl-C finishes the step at hand and keeps a checkpoint. `accelerate launch -m senri train ...` shares the work
    among processes.

    Args:
        overrides: settings such as experiment.data.train=books training.batch_size=4.
        config: a recipe's name (see config/recipes) or a YAML file.
    """
    from senri.cli.opening import quieten

    quieten()
    from rich.console import Console

    from senri.cli.tables import show_table
    from senri.evaluation.processes import process_state
    from senri.training import ConfigManager, ThreeStageTrainer
    from senri.training.run_report import tables, write_run_report

    manager = ConfigManager(config, overrides)
    command = ["senri", "train", "--config", config, *overrides]
    outcome = ThreeStageTrainer(manager, command, say=lambda sentence: print(sentence, flush=True)).train()
    if process_state().is_main_process:
        page = write_run_report(outcome, manager.recipe, command)
        console = Console()
        for table in tables(outcome):
            show_table(console, table)
        print(f"report: {page}")
    if not outcome.finished:
        raise Stopped(f"stopped. What is done is kept in {outcome.folder}; the same command goes on from there.")
    if process_state().is_main_process:
        print(f"the trained model is in {outcome.folder / 'model'}.")
