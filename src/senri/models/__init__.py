"""Models: the configuration, the decoder, sessions, and their registration with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.auto import modeling_auto

from senri.memory.state import SourceProgress
from senri.models.configuration_senri import SenriConfig
from senri.models.modeling_senri import (
    SenriForCausalLM,
    SenriForQuestionAnswering,
    SenriForSequenceClassification,
    SenriForTokenClassification,
    SenriModel,
    SenriPreTrainedModel,
)
from senri.models.session import Session, model_fingerprint

__all__ = [
    "SenriConfig",
    "SenriForCausalLM",
    "SenriForQuestionAnswering",
    "SenriForSequenceClassification",
    "SenriForTokenClassification",
    "SenriModel",
    "SenriPreTrainedModel",
    "Session",
    "SourceProgress",
    "model_fingerprint",
]

AutoConfig.register("senri", SenriConfig, exist_ok=True)
AutoModel.register(SenriConfig, SenriModel, exist_ok=True)
AutoModelForCausalLM.register(SenriConfig, SenriForCausalLM, exist_ok=True)
# `register` does not fill the tables of class names, which Trainer's label smoothing, pipelines and lm-eval look into.
modeling_auto.MODEL_MAPPING_NAMES.setdefault("senri", "SenriModel")
modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault("senri", "SenriForCausalLM")
