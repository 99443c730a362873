"""Element types: one row per safetensors dtype.

Source: the safetensors format (dtype tags and bit widths).
numpy has no bfloat16 or 8-bit floats, so their storage is an unsigned integer of the same width.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DType:
    """One element type.

    tag: the name in safetensors headers. torch: the attribute name in torch, or None.
    bits: width of one element. storage: numpy dtype of the raw bytes, little-endian ("" when
    elements are narrower than a byte). code: the C enum value in csrc/avops.h, -1 when no
    kernel computes on it. quantised: a float that only has meaning with its scales.
    """

    tag: str
    torch: str | None
    bits: int
    storage: str
    code: int = -1
    floating: bool = False
    quantised: bool = False

    @property
    def size(self) -> int:
        """Bytes per element. Defined for whole-byte types only."""
        if self.bits % 8:
            raise ValueError(f"{self.tag} elements are {self.bits} bits wide, not whole bytes")
        return self.bits // 8

    @property
    def computable(self) -> bool:
        """Whether the kernels compute on it."""
        return self.code >= 0

    def __str__(self) -> str:
        return self.tag


F32 = DType("F32", "float32", 32, "<f4", code=0, floating=True)
F16 = DType("F16", "float16", 16, "<f2", code=1, floating=True)
BF16 = DType("BF16", "bfloat16", 16, "<u2", code=2, floating=True)

DTYPES: dict[str, DType] = {
    d.tag: d
    for d in (
        F32,
        F16,
        BF16,
        DType("F64", "float64", 64, "<f8", floating=True),
        DType("C64", "complex64", 64, "<c8", floating=True),
        DType("BOOL", "bool", 8, "|u1"),
        DType("U8", "uint8", 8, "|u1"),
        DType("I8", "int8", 8, "|i1"),
        DType("U16", "uint16", 16, "<u2"),
        DType("I16", "int16", 16, "<i2"),
        DType("U32", "uint32", 32, "<u4"),
        DType("I32", "int32", 32, "<i4"),
        DType("U64", "uint64", 64, "<u8"),
        DType("I64", "int64", 64, "<i8"),
        DType("F8_E4M3", "float8_e4m3fn", 8, "|u1", floating=True, quantised=True),
        DType("F8_E5M2", "float8_e5m2", 8, "|u1", floating=True, quantised=True),
        DType("F8_E8M0", "float8_e8m0fnu", 8, "|u1", floating=True, quantised=True),
        DType("F8_E4M3FNUZ", "float8_e4m3fnuz", 8, "|u1", floating=True, quantised=True),
        DType("F8_E5M2FNUZ", "float8_e5m2fnuz", 8, "|u1", floating=True, quantised=True),
        DType("F6_E2M3", None, 6, "", floating=True, quantised=True),
        DType("F6_E3M2", None, 6, "", floating=True, quantised=True),
        DType("F4", "float4_e2m1fn_x2", 4, "", floating=True, quantised=True),
    )
}

COMPUTABLE: tuple[DType, ...] = (F32, F16, BF16)

_ALIASES = {"f32": F32, "float32": F32, "f16": F16, "float16": F16, "bf16": BF16, "bfloat16": BF16}


def parse_dtype(text: str) -> DType:
    """The computable dtype named ``text`` (bf16, bfloat16, f16, float16, f32, float32).

    Raises ValueError for any other name.
    """
    try:
        return _ALIASES[text.lower()]
    except KeyError:
        raise ValueError(f"dtype {text!r}, expected bf16, f16 or f32") from None
