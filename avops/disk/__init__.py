"""BYTES: safetensors headers, checkpoints, alignment vectors, staged output, sidecars."""

from avops.disk.adapter_config import AdapterConfig
from avops.disk.adapter_fit import vector_notes
from avops.disk.checkpoint import Checkpoint, Shard, Tensor, open_checkpoint
from avops.disk.fingerprint import fingerprint
from avops.disk.header import encode_header, parse_header, parse_length
from avops.disk.match import check_distinct, check_vector, touched
from avops.disk.nearest import nearest
from avops.disk.parts import LowRank, Part, Stored
from avops.disk.quantised import check_plain, integer_notes, plain_notes
from avops.disk.reader import read_exactly
from avops.disk.sidecars import patch_config, sidecars
from avops.disk.source import open_regular
from avops.disk.staging import RECIPE_NAME, Staging
from avops.disk.vector import Vector, open_base, open_vector
from avops.disk.write import write_checkpoint, write_file

__all__ = [
    "RECIPE_NAME",
    "AdapterConfig",
    "Checkpoint",
    "LowRank",
    "Part",
    "Shard",
    "Staging",
    "Stored",
    "Tensor",
    "Vector",
    "check_distinct",
    "check_plain",
    "check_vector",
    "encode_header",
    "fingerprint",
    "integer_notes",
    "nearest",
    "open_base",
    "open_checkpoint",
    "open_regular",
    "open_vector",
    "parse_header",
    "parse_length",
    "patch_config",
    "plain_notes",
    "read_exactly",
    "sidecars",
    "touched",
    "vector_notes",
    "write_checkpoint",
    "write_file",
]
