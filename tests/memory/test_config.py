"""MemoryConfig: what it refuses, in a sentence that names the field."""

import pytest

from senri.errors import SenriError
from senri.memory import MemoryConfig


def test_round_trip():
    config = MemoryConfig(rule="delta", feature_map="l2", normaliser="rmsnorm", key_dim=7, projections="own")
    assert MemoryConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "values,message",
    [
        ({"rule": "dleta"}, r"memory\.rule is 'dleta': did you mean 'delta'"),
        ({"segmentlength": 3}, r"'memory\.segmentlength': did you mean 'segment_length'"),
        ({"segment_length": 0}, r"memory\.segment_length is 0"),
        ({"segment_length": -4}, r"memory\.segment_length is -4"),
        ({"segment_length": "256"}, r"memory\.segment_length is '256' \(str\), but it must be int"),
        ({"segment_length": True}, r"memory\.segment_length is True \(bool\)"),
        ({"token_shift": 1}, r"memory\.token_shift is 1 \(int\), but it must be bool"),
        ({"write_strength": 0.0}, r"memory\.write_strength is 0\.0"),
        ({"write_strength": 1.5}, r"memory\.write_strength is 1\.5"),
        ({"learned_write_strength": True}, r"write_strength is 1\.0, where a learned strength cannot start"),
        ({"rule": "gated_delta", "decay": 1.0}, r"decay is 1\.0"),
        ({"short_convolution": 1}, r"short_convolution is 1"),
        ({"short_convolution": -1}, r"short_convolution is -1"),
        ({"convolution_delays": []}, r"convolution_delays is \[\]"),
        ({"convolution_delays": [1.0, -0.5]}, r"one is above 0"),
        ({"convolution_mean": -0.1}, r"convolution_mean is -0.1"),
        ({"convolution_gates": True}, r"belong to a convolution: set memory.short_convolution"),
        ({"look_ahead": 2, "projections": "own"}, r"belong to a convolution: set memory.short_convolution"),
        ({"look_ahead": 2, "short_convolution": 3}, r"look_ahead and memory.write_delay need projections"),
        ({"write_delay": 2}, r"look_ahead and memory.write_delay need projections"),
        ({"write_delay": -1}, r"write_delay"),
        ({"convolution_binds": True}, r"set memory.convolution_mean above 0"),
        ({"convolution_dense": -0.1}, r"convolution_dense is -0.1"),
        (
            {"convolution_dense": 0.2, "short_convolution": 4, "token_shift": True, "projections": "own"},
            r"set memory.token_shift, and memory.look_ahead",
        ),
        (
            {"convolution_dense": 0.2, "short_convolution": 4, "look_ahead": 1, "projections": "own"},
            r"set memory.token_shift, and memory.look_ahead",
        ),
        ({"write_strength_around": 1}, r"write_strength_around is 1, but it must be 0, or with .* up to 0"),
        ({"convolved_write_strength": True}, r"set memory.learned_write_strength and memory.short_convolution"),
        ({"write_budget": 100.0}, r"write_budget lowers learned strengths"),
        ({"write_budget": -1.0}, r"write_budget is -1"),
        ({"convolution_mean": 0.5}, r"belong to a convolution: set memory.short_convolution"),
        ({"convolution_mean_decay": 0.0}, r"convolution_mean_decay is 0.0"),
        ({"convolution_delays": 1.0}, r"convolution_delays is 1.0 \(float\), but it must be a list"),
        ({"convolution_delays": [0.5, 0.5]}, r"has no room for such delays"),
        (
            {"short_convolution": 2, "token_shift": True, "convolution_delays": [0.5, 0.5]},
            r"has no room for such delays",
        ),
        ({"eps": 0.0}, r"memory\.eps is 0\.0"),
        ({"feature_map": "l2"}, r"needs features that are never negative"),
        ({"scope": "batch", "granularity": "token"}, r"scope 'batch'"),
        ({"combine": "add"}, r"combine 'add'"),
        (
            {"combine": "add", "projections": "own", "learned_read_strength": True},
            r"learned_read_strength goes by .*normaliser is 'denominator'",
        ),
        ({"key_dim": 8}, r"memory\.key_dim is set, but shared projections"),
    ],
)
def test_bad_values(values, message):
    with pytest.raises(SenriError, match=message):
        MemoryConfig.from_dict(values)
