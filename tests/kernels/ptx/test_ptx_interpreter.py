"""The interpreter of PTX, on small texts: what instructions compute, and which faults are found."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from ptx import batch
from ptx.batch import Grid
from ptx.execute import execute
from ptx.memory import Fault, GlobalMemory
from ptx.operands import Unknown
from ptx.parse import parse

THREADS = 64


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """These kernels end soon, or never."""
    monkeypatch.setattr(batch, "MOST_STEPS", 3000)
    monkeypatch.setattr(batch, "MOST_TURNS", 20)


def run(
    body: str,
    *tensors: torch.Tensor,
    programs: int = 1,
    threads: int = THREADS,
    shared: int = 1024,
    together: int | None = None,
    errors: bool = False,
) -> None:
    """Execute a body. %rd1, %rd2, … are the addresses of the tensors; %r1 is the thread and %r2 the program."""
    parameters = ", ".join(f".param .u64 .ptr .global .align 1 k_param_{i}" for i in range(len(tensors)))
    loads = "\n".join(f"ld.param.b64 %rd{i + 1}, [k_param_{i}];" for i in range(len(tensors)))
    text = f"""
.extern .shared .align 16 .b8 global_smem[];
.visible .entry k({parameters})
.reqntid {threads}
{{
    .reg .pred %p<90>; .reg .b16 %rs<90>; .reg .b32 %r<90>; .reg .b64 %rd<90>;
    {loads}
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    {body}
    ret;
}}
"""
    memory = GlobalMemory()
    addresses = [memory.address_of(tensor) for tensor in tensors]
    execute(
        parse(text),
        Grid((programs, 1, 1), threads, shared),
        addresses,
        memory,
        seed=0,
        together=together,
        errors=errors,
    )


REGISTERS = {1: "%rs", 2: "%rs", 4: "%r", 8: "%rd"}


def computed(code: str, dtype: torch.dtype, *sources: torch.Tensor, errors: bool = False) -> torch.Tensor:
    """The results of an instruction, `$0` of `$1`, `$2`, …: an element of each source a thread."""
    lines, out = [], torch.zeros(THREADS, dtype=dtype)
    for i, tensor in enumerate((out, *sources)):
        size = tensor.element_size()
        lines.append(f"mul.wide.u32 %rd{40 + i}, %r1, {size}; add.s64 %rd{40 + i}, %rd{40 + i}, %rd{i + 1};")
        if i:
            lines.append(f"ld.global.b{8 * size} {REGISTERS[size]}{60 + i}, [%rd{40 + i}];")
        code = code.replace(f"${i}", f"{REGISTERS[size]}{60 + i}")
    lines += [code + ";", f"st.global.b{8 * out.element_size()} [%rd40], {REGISTERS[out.element_size()]}60;"]
    run("\n".join(lines), out, *sources, errors=errors)
    return out


def numbers(dtype: torch.dtype, seed: int = 0, low: int = -(2**31), high: int = 2**31) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        found = torch.randn(THREADS, generator=generator, dtype=torch.float64) * 10
        found[:8] = torch.tensor([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 65504.0])
        return found.to(dtype)
    return torch.randint(low, high, (THREADS,), generator=generator).to(dtype)


def same(found: torch.Tensor, expected: Any) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=0, atol=0, equal_nan=True)


# ---- arithmetic -----------------------------------------------------------------------------------------------------

FLOATS = {"f32": torch.float32, "f64": torch.float64}
INTEGERS = {"s32": torch.int32, "s64": torch.int64, "s16": torch.int16}


@pytest.mark.parametrize("name", FLOATS)
def test_floating_point_arithmetic(name: str) -> None:
    a, b = numbers(FLOATS[name]), numbers(FLOATS[name], seed=1).flip(0)
    rounding = "rn." if name == "f64" else ""
    for operation, function in (("add", torch.add), ("sub", torch.sub), ("mul", torch.mul)):
        same(computed(f"{operation}.{rounding}{name} $0, $1, $2", a.dtype, a, b), function(a, b))
    same(computed(f"div.rn.{name} $0, $1, $2", a.dtype, a, b), a / b)
    roots = [math.sqrt(x) if x >= 0 else math.nan for x in a.tolist()]  # of torch, some are off by an ulp
    same(computed(f"sqrt.rn.{name} $0, $1", a.dtype, a), roots)
    same(computed(f"max.{name} $0, $1, $2", a.dtype, a, b), torch.fmax(a, b))
    same(computed(f"neg.{name} $0, $1", a.dtype, a), -a)
    same(computed(f"abs.{name} $0, $1", a.dtype, a), a.abs())


@pytest.mark.parametrize("name", FLOATS)
def test_a_fused_multiplication_rounds_once(name: str) -> None:
    a, b = (numbers(FLOATS[name], seed=i)[8:].repeat(2)[:THREADS] for i in (2, 3))
    c = -(a * b)  # what remains is the rounding of the product, and nothing if it were rounded
    exact = [
        float(Fraction(x) * Fraction(y) + Fraction(z)) for x, y, z in zip(*(t.tolist() for t in (a, b, c)), strict=True)
    ]
    found = computed(f"fma.rn.{name} $0, $1, $2, $3", a.dtype, a, b, c)
    same(found, exact)
    assert (found != 0).any()


def test_approximate_functions() -> None:
    a = numbers(torch.float32)
    ulp = torch.finfo(torch.float32).eps
    for code, exact, ulps in (
        ("ex2.approx.f32 $0, $1", a.double().exp2(), 2),
        ("rsqrt.approx.f32 $0, $1", a.double().rsqrt(), 2),
        ("sqrt.approx.f32 $0, $1", a.double().sqrt(), 1),
        ("rcp.approx.f32 $0, $1", a.double().reciprocal(), 1),
        ("div.full.f32 $0, $1, $1", a.double() / a.double(), 2),
    ):
        found = computed(code, torch.float32, a, errors=True)
        right = computed(code, torch.float32, a)
        torch.testing.assert_close(right.double(), exact, rtol=ulp, atol=0, equal_nan=True)
        torch.testing.assert_close(found.double(), exact, rtol=(ulps + 1) * ulp, atol=0, equal_nan=True)
        same(found, computed(code, torch.float32, a, errors=True))
        assert (found != right)[8:].any() or "div" in code  # 1 is a power of two, and stays
    tiny = torch.full((THREADS,), 1e-40)
    same(computed("add.ftz.f32 $0, $1, $1", torch.float32, tiny), torch.zeros(THREADS))
    same(computed("add.f32 $0, $1, $1", torch.float32, tiny), tiny + tiny)


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_arithmetic(name: str) -> None:
    dtype = INTEGERS[name]
    a, b = numbers(dtype), numbers(dtype, seed=1)
    b[b == 0] = 1
    same(computed(f"add.{name} $0, $1, $2", dtype, a, b), a + b)
    same(computed(f"sub.{name} $0, $1, $2", dtype, a, b), a - b)
    same(computed(f"mul.lo.{name} $0, $1, $2", dtype, a, b), a * b)
    same(computed(f"div.{name} $0, $1, $2", dtype, a, b), torch.div(a, b, rounding_mode="trunc"))
    same(computed(f"rem.{name} $0, $1, $2", dtype, a, b), torch.fmod(a, b))
    same(computed(f"min.{name} $0, $1, $2", dtype, a, b), torch.minimum(a, b))
    bits = 8 * a.element_size()
    for by in (0, 3, bits - 1):
        same(computed(f"shr.{name} $0, $1, {by}", dtype, a), a >> by)
        same(computed(f"shl.b{bits} $0, $1, {by}", dtype, a), a << by)
    same(computed(f"shl.b{bits} $0, $1, {bits}", dtype, a), torch.zeros(THREADS))
    same(computed(f"xor.b{bits} $0, $1, $2", dtype, a, b), a ^ b)


def test_products_of_integers_are_wide_or_high() -> None:
    a, b = numbers(torch.int32), numbers(torch.int32, seed=1)
    c = numbers(torch.int64, seed=2, low=-(2**62), high=2**62)
    exact = a.long() * b.long()
    same(computed("mul.wide.s32 $0, $1, $2", torch.int64, a, b), exact)
    same(computed("mad.wide.s32 $0, $1, $2, $3", torch.int64, a, b, c), exact + c)
    same(computed("mul.hi.s32 $0, $1, $2", torch.int32, a, b), exact >> 32)
    d = numbers(torch.int64, seed=3, low=-(2**63), high=2**63 - 1)
    for name, mask in (("s64", 0), ("u64", 2**64 - 1)):
        pairs = [(x & mask, y & mask) if mask else (x, y) for x, y in zip(c.tolist(), d.tolist(), strict=True)]
        high = [((x * y) >> 64) & (2**64 - 1) for x, y in pairs]
        same(computed(f"mul.hi.{name} $0, $1, $2", torch.int64, c, d), [x - 2**64 if x >= 2**63 else x for x in high])


def test_parts_of_words() -> None:
    a, b = numbers(torch.int32), numbers(torch.int32, seed=1)
    same(computed("bfe.u32 $0, $1, 4, 9", torch.int32, a), (a >> 4) & 511)
    same(computed("bfe.s32 $0, $1, 4, 9", torch.int32, a), (a << 19) >> 23)
    raw = torch.cat([a[:, None].view(torch.uint8), b[:, None].view(torch.uint8)], 1)
    picked = raw[:, [5, 0, 3, 6]].contiguous().view(torch.int32)[:, 0]
    same(computed("prmt.b32 $0, $1, $2, 0x6305U", torch.int32, a, b), picked)
    halves = "mov.b32 {%rs1, %rs2}, $1; mov.b32 $0, {%rs2, %rs1}"
    same(computed(halves, torch.int32, a), a.view(torch.int16).view(-1, 2).flip(1).contiguous().view(torch.int32)[:, 0])


# ---- conversions ----------------------------------------------------------------------------------------------------


def test_every_bfloat16_and_the_middles_between_round_as_in_torch() -> None:
    """All 2¹⁶ numbers, the ties between neighbours, and their neighbours."""
    bits = (torch.arange(2**16).view(-1, 1) << 16) + torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    every = bits.flatten().to(torch.int64)
    every = torch.where(every >= 2**31, every - 2**32, every).to(torch.int32).view(torch.float32)
    out = torch.zeros(every.shape, dtype=torch.bfloat16)
    programs = every.numel() // THREADS
    place = "mad.lo.s32 %r3, %r2, 64, %r1; mul.wide.u32 %rd10, %r3, 4; add.s64 %rd11, %rd2, %rd10;"
    place += "shr.u64 %rd10, %rd10, 1; add.s64 %rd12, %rd1, %rd10; ld.global.b32 %r4, [%rd11];"
    run(place + "cvt.rn.bf16.f32 %rs1, %r4; st.global.b16 [%rd12], %rs1;", out, every, programs=programs)
    same(out, every.bfloat16())
    back = torch.zeros(every.shape, dtype=torch.float32)
    widen = place + "ld.global.b16 %rs1, [%rd12]; cvt.f32.bf16 %r5, %rs1; add.s64 %rd13, %rd3, %rd10;"
    widen += "add.s64 %rd13, %rd13, %rd10; st.global.b32 [%rd13], %r5;"
    run(widen, out, every, back, programs=programs)
    same(back, out.float())


@pytest.mark.parametrize("to", ["f16", "bf16", "f64"])
def test_floating_point_conversions(to: str) -> None:
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "f64": torch.float64}[to]
    a = numbers(torch.float32) * 5000
    same(computed(f"cvt.{'' if to == 'f64' else 'rn.'}{to}.f32 $0, $1", dtype, a), a.to(dtype))
    same(
        computed(f"cvt.{'rn.' if to == 'f64' else ''}f32.{to} $0, $1", torch.float32, a.to(dtype)), a.to(dtype).float()
    )


@pytest.mark.parametrize("half", ["f16", "bf16"])
def test_the_first_of_two_packed_halves_is_the_upper(half: str) -> None:
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[half]
    a, b = numbers(torch.float32), numbers(torch.float32, seed=1)
    found = computed(f"cvt.rn.{half}x2.f32 $0, $1, $2", torch.int32, a, b)
    same(found.view(dtype).view(-1, 2), torch.stack([b, a], 1).to(dtype))


def test_conversions_of_integers() -> None:
    a, big = numbers(torch.int32), numbers(torch.int64, low=-(2**62), high=2**62)
    same(computed("cvt.rn.f32.s32 $0, $1", torch.float32, a), a.float())
    same(computed("cvt.rn.f32.s64 $0, $1", torch.float32, big), big.float())
    same(computed("cvt.s64.s32 $0, $1", torch.int64, a), a.long())
    same(computed("cvt.u32.u64 $0, $1", torch.int32, big), big.to(torch.int32))
    same(computed("cvt.u64.u32 $0, $1", torch.int64, a), a.long() & 0xFFFFFFFF)
    x = torch.tensor([1.5, -1.5, 2.5, -0.5, 3e9, -3e9, math.nan, math.inf] * 8)
    limits = [2**31 - 1, -(2**31), 0, 2**31 - 1] * 1
    for rounding, expected in (("rzi", [1, -1, 2, 0]), ("rni", [2, -2, 2, 0]), ("rmi", [1, -2, 2, -1])):
        same(computed(f"cvt.{rounding}.s32.f32 $0, $1", torch.int32, x), (expected + limits) * 8)


# ---- predicates and branches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["f32", "s32", "u32"])
def test_comparisons(name: str) -> None:
    dtype = torch.float32 if name == "f32" else torch.int32
    a, b = numbers(dtype), numbers(dtype, seed=1)
    b[::3] = a[::3]
    b[6] = 2
    x, y = (t.numpy().view(np.uint32) if name == "u32" else t.numpy() for t in (a, b))
    expected = {"eq": x == y, "lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y}
    unordered = np.isnan(x) | np.isnan(y) if name == "f32" else np.zeros(THREADS, bool)
    expected["ne"] = (x != y) & ~unordered
    if name == "f32":
        expected |= {f"{key}u": expected[key] | unordered for key in ("eq", "lt", "le", "gt", "ge", "ne")}
        expected |= {"num": ~unordered, "nan": unordered}
        expected["neu"] = expected.pop("neu")
    for key, value in expected.items():
        code = f"setp.{key}.{name} %p1, $1, $2; selp.b32 $0, 1, 0, %p1"
        same(computed(code, torch.int32, a, b), value.astype(np.int32))


def test_predicates_combine_and_guard() -> None:
    a = torch.arange(THREADS, dtype=torch.int32)
    code = "mov.b32 $0, 0; setp.gt.s32 %p1, $1, 9; setp.lt.and.s32 %p2|%p3, $1, 20, %p1;"
    code += "@%p2 mov.b32 $0, 1; @!%p1 mov.b32 $0, 2"
    same(computed(code, torch.int32, a), [2] * 10 + [1] * 10 + [0] * 44)
    code = "setp.gt.s32 %p1, $1, 9; not.pred %p2, %p1; xor.pred %p3, %p2, %p1; and.pred %p3, %p3, %p1;"
    code += "selp.b32 $0, 7, 8, %p3"
    same(computed(code, torch.int32, a), [8] * 10 + [7] * 54)


def test_threads_that_go_different_ways_meet_again() -> None:
    """A loop of as many rounds as the thread's number, a branch inside of it, and a barrier after it."""
    a = torch.arange(THREADS, dtype=torch.int32)
    code = """mov.b32 $0, 0; mov.b32 %r5, 0;
$LOOP: setp.ge.s32 %p1, %r5, $1; @%p1 bra $END;
    and.b32 %r6, %r5, 1; setp.eq.s32 %p2, %r6, 0; @%p2 bra $EVEN;
    add.s32 $0, $0, 10; bra.uni $NEXT;
$EVEN: add.s32 $0, $0, 1;
$NEXT: add.s32 %r5, %r5, 1; bra $LOOP;
$END: bar.sync 0; add.s32 $0, $0, 0"""
    same(computed(code, torch.int32, a), [(i + 1) // 2 + 10 * (i // 2) for i in range(THREADS)])


@pytest.mark.parametrize("together", [1, 2, None])
def test_programs_wait_for_each_other_only_if_they_run_together(together: int | None) -> None:
    """Each program counts itself, and goes on when all are there: a barrier of the grid."""
    counter, out = torch.zeros(1, dtype=torch.int32), torch.zeros(6, dtype=torch.int32)
    body = """setp.ne.s32 %p1, %r1, 0; @%p1 bra $OUT;
    atom.global.gpu.acq_rel.add.u32 %r3, [%rd1], 1;
$WAIT: ld.global.acquire.gpu.b32 %r4, [%rd1]; setp.lt.u32 %p2, %r4, 6; @%p2 bra $WAIT;
$OUT: bar.sync 0; mul.wide.u32 %rd5, %r2, 4; add.s64 %rd5, %rd5, %rd2; mov.b32 %r5, 1;
    @!%p1 st.global.b32 [%rd5], %r5;"""
    if together is None:
        run(body, counter, out, programs=6)
        assert out.tolist() == [1] * 6
    else:
        with pytest.raises(Fault, match="has not ended after"):
            run(body, counter, out, programs=6, together=together)


# ---- threads of a warp ----------------------------------------------------------------------------------------------


def test_shuffles() -> None:
    a = torch.arange(THREADS, dtype=torch.int32) * 3 + 1
    lane, base = torch.arange(THREADS) % 32, torch.arange(THREADS) // 32 * 32
    for mode, by, clamp, source in (
        ("bfly", 5, 31, lane ^ 5),
        ("idx", 9, 31, torch.full_like(lane, 9)),
        ("down", 3, 31, torch.where(lane + 3 < 32, lane + 3, lane)),
        ("up", 3, 0, torch.where(lane >= 3, lane - 3, lane)),
        ("idx", 1, 0x181F, lane // 8 * 8 + 1),  # in segments of 8
    ):
        same(computed(f"shfl.sync.{mode}.b32 $0, $1, {by}, {clamp}, -1", torch.int32, a), a[base + source])
    with pytest.raises(Fault, match="some of them went another way"):
        computed("setp.gt.s32 %p1, %r1, 3; @%p1 shfl.sync.bfly.b32 $0, $1, 1, 31, -1", torch.int32, a)


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices(transposed: bool) -> None:
    """What stmatrix writes, ld.shared reads: an 8×8 matrix, thread 4 r + c has columns 2 c and 2 c + 1 of row r."""
    out = torch.zeros(32, 2, dtype=torch.int16)
    body = f"""shl.b32 %r3, %r1, 1; add.s32 %r4, %r3, 1; shl.b32 %r5, %r4, 16; or.b32 %r5, %r5, %r3;
    and.b32 %r6, %r1, 7; shl.b32 %r6, %r6, 4; mov.b32 %r7, global_smem; add.s32 %r6, %r6, %r7;
    stmatrix.sync.aligned.m8n8.x1{".trans" if transposed else ""}.shared.b16 [%r6], {{%r5}};
    bar.sync 0; shl.b32 %r8, %r1, 2; add.s32 %r8, %r8, %r7; ld.shared.b32 %r9, [%r8];
    ldmatrix.sync.aligned.m8n8.x1{".trans" if transposed else ""}.shared.b16 {{%r10}}, [%r6];
    sub.s32 %r10, %r10, %r5; setp.ne.s32 %p1, %r10, 0; @%p1 mov.b32 %r9, -1;
    mul.wide.u32 %rd5, %r8, 1; add.s64 %rd5, %rd5, %rd1; st.global.b32 [%rd5], %r9;"""
    run(body, out, threads=32)
    matrix = torch.arange(64).view(8, 8)
    same(out.view(8, 8), matrix.T if transposed else matrix)


# ---- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", ["b8", "b16", "b32", "b64", "v2.b16", "v2.b32", "v4.b32", "v2.b64"])
@pytest.mark.parametrize("space", ["global", "shared"])
def test_every_width(vector: str, space: str) -> None:
    count = int(vector[1]) if vector.startswith("v") else 1
    bits = int(vector.split("b")[1])
    width = count * bits // 8
    names = [f"{ {8: '%rs', 16: '%rs', 32: '%r', 64: '%rd'}[bits] }{70 + i}" for i in range(count)]
    value = "{" + ", ".join(names) + "}" if count > 1 else names[0]
    source = torch.randint(0, 256, (THREADS * width,), dtype=torch.uint8)
    out = torch.zeros_like(source)
    body = f"""mul.wide.u32 %rd5, %r1, {width}; add.s64 %rd6, %rd5, %rd1; add.s64 %rd7, %rd5, %rd2;
    ld.global.{vector} {value}, [%rd7];"""
    if space == "shared":
        body += f"""cvt.u32.u64 %r5, %rd5; st.shared.{vector} [%r5], {value}; bar.sync 0;
        xor.b32 %r6, %r1, 33; mul.lo.s32 %r6, %r6, {width}; ld.shared.{vector} {value}, [%r6];"""
        expected = source.view(THREADS, width)[torch.arange(THREADS) ^ 33].flatten()
    else:
        expected = source
    run(body + f"st.global.{vector} [%rd6], {value};", out, source)
    same(out, expected)


ELEMENT = "mul.wide.u32 %rd5, %r1, 4; add.s64 %rd6, %rd5, %rd1; add.s64 %rd7, %rd5, %rd2; mov.b32 %r3, 7;"
ELEMENT += "shl.b32 %r4, %r1, 2;"
FAULTS = {
    "a load behind a tensor": (
        "ld.global.b32 %r3, [%rd6+4];",
        "out of bounds: 4 bytes at 256 of a tensor of 256 bytes; at ld.global.b32",
    ),
    "a store before a tensor": ("st.global.b32 [%rd6+-4], %r3;", "in no tensor|out of bounds: 4 bytes at -4"),
    "a wide load at an odd place": ("ld.global.v2.b32 {%r8, %r9}, [%rd6];", "no multiple of 8"),
    "an address of nothing": ("mov.b64 %rd8, 4096; ld.global.b32 %r3, [%rd8];", "in no tensor"),
    "an undefined register is stored": ("st.global.b32 [%rd6], %r80;", "the stored value depends on register %r80"),
    "an undefined address": ("add.s64 %rd8, %rd6, %rd80; st.global.b32 [%rd8], %r3;", "the address depends on"),
    "an undefined branch": ("setp.gt.s32 %p1, %r80, 0; @%p1 bra $X; $X:", "a branch depends on register %p1"),
    "undefined in some threads": (
        "setp.gt.s32 %p1, %r1, 7; @%p1 ld.global.b32 %r8, [%rd6]; st.global.b32 [%rd7], %r8;",
        "the stored value depends on register %r8",
    ),
    "shared memory that nothing wrote": ("ld.shared.b32 %r8, [%r4];", "that nothing has written"),
    "shared memory that another thread wrote": (
        "st.shared.b32 [%r4], %r3; xor.b32 %r5, %r4, 128; ld.shared.b32 %r8, [%r5];",
        "reads what thread 32 wrote, without a barrier between",
    ),
    "shared memory that another thread of the warp wrote": (
        "st.shared.b32 [%r4], %r3; xor.b32 %r5, %r4, 4; ld.shared.b32 %r8, [%r5];",
        "reads what thread 1 wrote, without a barrier between",
    ),
    "shared memory that another thread still reads": (
        """st.shared.b32 [%r4], %r3; bar.sync 0; xor.b32 %r5, %r4, 128; ld.shared.b32 %r8, [%r5];
        st.shared.b32 [%r4], %r3;""",
        "writes what thread 32 read, without a barrier between",
    ),
    "shared memory that all threads still read": (
        "st.shared.b32 [%r4], %r3; bar.sync 0; ld.shared.b32 %r8, [global_smem]; st.shared.b32 [%r4], %r3;",
        "writes what several threads read",
    ),
    "two threads write one place": ("st.shared.b32 [global_smem], %r1;", "different values to one place in shared"),
    "two threads write one place in global memory": ("st.global.b32 [%rd1], %r1;", "different values to one place"),
    "shared memory that the launch does not have": ("st.shared.b32 [%r4+1000], %r3;", "outside of the 1024 bytes"),
    "a barrier for some": (
        "setp.gt.s32 %p1, %r1, 5; @%p1 bra $X; bar.sync 0; $X:",
        "wait at a barrier to which others never come",
    ),
    "a division by 0": ("mov.b32 %r8, 0; div.s32 %r9, %r3, %r8;", "division of an integer by 0"),
    "a loop without an end": ("$X: bra $X;", "has not ended after"),
    "a copy that is not waited for": (
        "cp.async.ca.shared.global [%r4], [%rd6], 4; cp.async.commit_group; ld.shared.b32 %r8, [%r4];",
        "wait_group is missing",
    ),
    "a copy of which the newer group is not waited for": (
        """cp.async.ca.shared.global [%r4], [%rd6], 4; cp.async.commit_group; add.s32 %r5, %r4, 256;
        cp.async.ca.shared.global [%r5], [%rd6], 4; cp.async.commit_group; cp.async.wait_group 1;
        ld.shared.b32 %r8, [%r4]; ld.shared.b32 %r8, [%r5];""",
        r"wait_group is missing; at ld.shared.b32 %r8, \[%r5\]",
    ),
    "another thread's copy, without a barrier": (
        """cp.async.ca.shared.global [%r4], [%rd6], 4; cp.async.commit_group; cp.async.wait_group 0;
        xor.b32 %r5, %r4, 128; ld.shared.b32 %r8, [%r5];""",
        "reads what thread 32 wrote",
    ),
}


@pytest.mark.parametrize(("body", "message"), FAULTS.values(), ids=FAULTS)
def test_faults(body: str, message: str) -> None:
    a, b = (torch.zeros(THREADS, dtype=torch.int32) for _ in range(2))
    with pytest.raises(Fault, match=message):
        run(ELEMENT + body, a, b)


def test_a_barrier_mends_the_races() -> None:
    a, b = torch.arange(THREADS, dtype=torch.int32), torch.zeros(THREADS, dtype=torch.int32)
    body = """cp.async.ca.shared.global [%r4], [%rd6], 4; cp.async.commit_group; cp.async.wait_group 0; bar.sync 0;
    xor.b32 %r5, %r4, 128; ld.shared.b32 %r8, [%r5]; bar.sync 0; st.shared.b32 [%r4], %r8; bar.warp.sync -1;
    xor.b32 %r5, %r4, 4; ld.shared.b32 %r8, [%r5]; st.global.b32 [%rd7], %r8;"""
    run(ELEMENT + body, a, b)
    same(b, a.view(2, 16, 2).flip(0, 2).flatten())


def test_what_an_undefined_register_cannot_decide_is_no_fault() -> None:
    """A masked load leaves it undefined; the results of these threads are not stored."""
    a, b = torch.arange(THREADS, dtype=torch.int32), torch.zeros(THREADS, dtype=torch.int32)
    body = """setp.gt.s32 %p1, %r1, 7; @%p1 ld.global.b32 %r8, [%rd6]; add.s32 %r9, %r8, 1; setp.gt.s32 %p2, %r9, 20;
    and.pred %p3, %p1, %p2; selp.b32 %r10, %r9, 5, %p1; st.global.b32 [%rd7], %r10; @%p3 st.global.b32 [%rd7], %r9;"""
    run(ELEMENT + body, a, b)
    same(b, [5] * 8 + list(range(9, 65)))


TOGETHER = """setp.eq.s32 %p1, %r1, 0; mul.wide.u32 %rd5, %r2, 4; add.s64 %rd6, %rd5, %rd1; mov.b32 %r3, 1;
setp.eq.s32 %p7, %r1, 40; @%p7 st.global.b32 [%rd6], %r3; {barrier}
@%p1 atom.global.gpu.{kind}.add.u32 %r4, [%rd2], 1; @%p1 st.shared.b32 [global_smem], %r4; bar.sync 0;
ld.shared.b32 %r5, [global_smem]; setp.ne.s32 %p2, %r5, 3; @%p2 bra $END;
mul.wide.u32 %rd7, %r1, 4; add.s64 %rd7, %rd7, %rd1; setp.lt.u32 %p3, %r1, 4; @%p3 ld.global.b32 %r6, [%rd7];
add.s64 %rd8, %rd7, 16; @%p3 st.global.b32 [%rd8], %r6;
$END:"""


@pytest.mark.parametrize("together", [1, None])
def test_the_last_program_may_read_what_all_have_written(together: int | None) -> None:
    """Each program writes a part and counts itself. The last one reads all parts."""
    parts, counter = torch.zeros(8, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    run(TOGETHER.format(barrier="bar.sync 0;", kind="acq_rel"), parts, counter, programs=4, together=together)
    assert parts.tolist() == [1] * 8
    for barrier, kind in (("", "acq_rel"), ("bar.sync 0;", "relaxed")):  # thread 40 wrote, and thread 0 counts
        with pytest.raises(Fault, match=r"program \d reads what program \d wrote in the same launch"):
            run(TOGETHER.format(barrier=barrier, kind=kind), parts, counter.zero_(), programs=4, together=together)


FLAG = """setp.ne.s32 %p1, %r1, 0; setp.ne.s32 %p2, %r2, 0; @%p2 bra $READ; mul.wide.u32 %rd5, %r1, 4;
add.s64 %rd6, %rd5, %rd1; st.global.b32 [%rd6], %r1; bar.sync 0; mov.b32 %r4, 1; @%p1 bra $END;
st.global.{release}.gpu.b32 [%rd2], %r4; bra $END;
$READ: @%p1 bra $READY;
$WAIT: ld.global.{acquire}.gpu.b32 %r5, [%rd2]; setp.eq.s32 %p3, %r5, 0; @%p3 bra $WAIT;
$READY: bar.sync 0; mul.wide.u32 %rd5, %r1, 4; add.s64 %rd6, %rd5, %rd1; ld.global.b32 %r6, [%rd6+4];
add.s32 %r6, %r6, 100; st.global.b32 [%rd6+4], %r6;
$END:"""


def test_a_flag_orders_two_programs_by_release_and_acquire() -> None:
    for release, acquire in (("release", "acquire"), ("relaxed", "acquire"), ("release", "relaxed")):
        data, flag = torch.zeros(THREADS + 1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        body = FLAG.format(release=release, acquire=acquire)
        if (release, acquire) == ("release", "acquire"):
            run(body, data, flag, programs=2)
            assert data.tolist() == [0, *range(101, 100 + THREADS), 100]
        else:
            with pytest.raises(Fault, match="program 1 reads what program 0 wrote in the same launch"):
                run(body, data, flag, programs=2)


def test_programs_that_meet_in_one_place() -> None:
    a, b = (torch.zeros(THREADS, dtype=torch.int32) for _ in range(2))
    for body, message in (
        ("st.global.b32 [%rd6], %r3;", "writes where program|two programs write"),
        ("ld.global.b32 %r8, [%rd6]; @%p1 st.global.b32 [%rd6], %r3;", "writes what other programs read"),
        ("@!%p1 ld.global.b32 %r8, [%rd6]; @%p1 st.global.b32 [%rd6], %r3;", "writes what program 0 read"),
    ):
        with pytest.raises(Fault, match=message):
            run(ELEMENT + "setp.eq.s32 %p1, %r2, 1;" + body, a, b, programs=2)


# ---- texts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "instruction",
    [
        "sin.approx.f32 %r3, %r1",
        "add.rz.f32 %r3, %r1, %r1",
        "ld.local.b32 %r3, [%r1]",
        "mov.u32 %r3, %clock",
        "bar.sync 1, 32",
        "cvt.rz.f32.f64 %r3, %rd1",
        "wgmma.fence.sync.aligned",
    ],
)
def test_an_unknown_instruction_is_named(instruction: str) -> None:
    with pytest.raises(Unknown, match=f"k: the interpreter does not know {instruction.split()[0]}"):
        run(instruction + ";", torch.zeros(4))


def test_the_parser() -> None:
    kernel = parse(
        """
.visible .entry two(
    .param .u64 .ptr .global .align 1 two_param_0, .param .u32 two_param_1
)
{
    .reg .pred %p<3>; .reg .b32 %r<9>;
    .loc 1 12 3 // kernel.py:12:3 @[ other.py:4:5 ]
$L_1: // a label
    { .reg .b64 %one; @!%p1 ld.global.L1::evict_last.v2.b32 { %r1, %r2 }, [ %rd1 + 8 ]; }
    add.s32 %r3,
        %r1, 4; // two lines
    ret;
}
"""
    )
    assert kernel.name == "two" and kernel.parameters == [("two_param_0", 8), ("two_param_1", 4)]
    load, add, _ = kernel.code
    assert load.parts == ("ld", "global", "L1_evict_last", "v2", "b32") and load.guard == "%p1" and load.negated
    assert load.operands == ("{ %r1, %r2 }", "[ %rd1 + 8 ]") and load.where == "kernel.py:12:3"
    assert add.operands == ("%r3", "%r1", "4") and kernel.labels == {"$L_1": 0}
    assert kernel.width("%r7") == 32 and kernel.width("%p2") == 1
    for text, message in (
        ("", "no .entry"),
        (".entry a() { ret;", "no end"),
        (".entry a() { 1x; }", "cannot read '1x'"),
    ):
        with pytest.raises(ValueError, match=message):
            parse(text)


def test_arguments_are_counted() -> None:
    kernel, memory = parse(".entry a(.param .u32 a_param_0) { ret; }"), GlobalMemory()
    with pytest.raises(ValueError, match="takes 1 parameters, found 0"):
        execute(kernel, Grid((1, 1, 1), 32, 16), [], memory, 0)


def test_the_seed_decides_the_order_of_atomic_operations() -> None:
    orders = set()
    body = "atom.global.gpu.relaxed.add.u32 %r3, [%rd2], 1; mul.wide.u32 %rd5, %r1, 4;"
    body += "add.s64 %rd5, %rd5, %rd1; st.global.b32 [%rd5], %r3;"
    for _ in itertools.repeat(None, 2):
        out, counter = torch.zeros(THREADS, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        run(body, out, counter)
        assert sorted(out.tolist()) == list(range(THREADS)) and out.tolist() != list(range(THREADS))
        orders.add(tuple(out.tolist()))
    assert len(orders) == 1
