"""What the trainer reads in a stage: rows of tokens, or numbered samples that a collator makes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import default_data_collator

from senri.evaluation.processes import process_state
from senri.models.modeling_senri import SenriForCausalLM
from senri.training.config import Recipe, StageConfig
from senri.training.recall.batches import FindingBatches, NumberedSamples, RecallBatches
from senri.training.recall.config import FindingConfig
from senri.training.recall.haystacks import Haystacks
from senri.training.recall.values import Stretches, ValueDecoding
from senri.training.rows import TrainingRows


@dataclass(frozen=True)
class StageData:
    """What a trainer is given.

    Attributes:
        samples: the trainer's dataset.
        collator: makes batches of them.
        per_step: tokens that a step reads; 0 where that differs.
    """

    samples: Dataset[Any]
    collator: Any
    per_step: int


def stage_data(
    recipe: Recipe,
    config: StageConfig,
    folder: Path,
    model: SenriForCausalLM,
    tokenizer: Any,
    rows: TrainingRows,
    half: bool,
) -> StageData:
    """Return what a stage's loss is computed from.

    Args:
        recipe: of the run.
        config: of the stage.
        folder: of the stage.
        model: what is trained, what is frozen marked.
        tokenizer: its own.
        rows: the text.
        half: frozen layers run in bfloat16.

    Raises:
        SenriError: data or settings that do not go together.
    """
    training, seed = recipe.training, recipe.experiment.seed
    if config.loss not in ("recall", "values", "finding"):
        length = max(training.curriculum) if training.curriculum else training.max_length
        return StageData(rows, default_data_collator, training.batch_size * length)
    assert training.recall is not None and config.max_steps is not None
    samples = NumberedSamples(config.max_steps * training.batch_size)
    recall = training.recall
    recall.window.check_room(model.config.sliding_window)
    if config.loss == "values":
        kinds = recall.haystacks.kinds
        stretches = Stretches(rows, tokenizer, recall.values, recall.window, kinds, seed)
        return StageData(samples, stretches, training.batch_size * stretches.tokens)
    is_finding, finding = config.loss == "finding", finding_of_stage(recall.finding, config)
    kept = folder.parent / "kept"  # stages share it
    dtype = training.frozen_base_dtype
    with process_state().main_process_first():  # the others open the files that it made
        haystacks = Haystacks(
            model,
            tokenizer,
            rows,
            recall.haystacks,
            (finding if is_finding else recall.answering).lengths,
            0 if is_finding else recall.window.longest + recall.answering.text_tokens,
            kept,
            training.batch_size,
            seed,
            dtype,
            half=half,
        )
        batches = (
            FindingBatches(haystacks, model, recall.haystacks, finding, kept, dtype, half=half)
            if is_finding
            else RecallBatches(haystacks, recall.window, recall.answering.text_tokens)
        )
    return StageData(samples, batches, 0)


def finding_of_stage(finding: FindingConfig, config: StageConfig) -> FindingConfig:
    """Return the settings of the loss `finding` in a stage.

    A stage that learns only how far the memory is heard follows one that taught it to find: its texts are of the
    longest lengths from the first step on, no steps go without a memory, and plain text has a weight of its own.

    Args:
        finding: settings of the run.
        config: of the stage.
    """
    if config.train != "hearing":
        return finding
    longest = replace(finding.lengths, first=finding.lengths.longest)
    return replace(finding, meeting_first=0, lengths=longest, text_weight=finding.hearing_text_weight)


def solve_values(objective: ValueDecoding, stretches: Stretches, recipe: Recipe, config: StageConfig) -> None:
    """Solve what values are learnt from, on other stretches than those of the steps.

    Args:
        objective: of the stage.
        stretches: its collator.
        recipe: of the run.
        config: of the stage.
    """
    training, device = recipe.training, objective.model.device
    assert training.recall is not None and config.max_steps is not None
    values, size = training.recall.values, training.batch_size
    first = config.max_steps * size
    numbers = torch.arange(first, first + values.solve_batches * size).view(-1, size).tolist()
    batches = [
        {name: part.to(device) for name, part in stretches([{"number": number} for number in some]).items()}
        for some in numbers
    ]
    with torch.random.fork_rng():  # what is found has others' values mixed in
        torch.manual_seed(recipe.experiment.seed)
        objective.solve(batches, values, recipe.experiment.seed)
