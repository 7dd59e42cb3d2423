"""Models: configuration, decoder, layers to mix by hand, sessions; registered with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.auto import modeling_auto

from senri.memory.state import SourceProgress
from senri.models.configuration_senri import SenriConfig
from senri.models.hand_built import TransformerLM, create_model
from senri.models.modeling_senri import (
    SenriForCausalLM,
    SenriForQuestionAnswering,
    SenriForSequenceClassification,
    SenriForTokenClassification,
    SenriModel,
)
from senri.models.pretrained import SenriPreTrainedModel
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
    "TransformerLM",
    "create_model",
    "model_fingerprint",
]

AutoConfig.register("senri", SenriConfig, exist_ok=True)
AutoModel.register(SenriConfig, SenriModel, exist_ok=True)
AutoModelForCausalLM.register(SenriConfig, SenriForCausalLM, exist_ok=True)
# `register` does not fill the tables of class names, which Trainer's label smoothing, pipelines and lm-eval look into.
modeling_auto.MODEL_MAPPING_NAMES.setdefault("senri", "SenriModel")
modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault("senri", "SenriForCausalLM")
