"""What the models of `launch_model` and `estimate` know about a GPU: sizes, rates and latencies, with their sources.

Sizes and peak rates are NVIDIA's:

- multiprocessors, memory, bandwidth, L2 and peak FLOP/s: the architecture white papers of A100 (GA100), H100 (GH100),
  Ada (AD102) and Blackwell (GB202), and the data sheets of A100, H100, H200 and HGX B200;
- registers, shared memory, threads and programs of a multiprocessor: the CUDA programming guide, "Compute
  Capabilities", and the tuning guides of each generation;
- the clock: the boost clock of the white papers. B200's is that of chipsandcheese.com.

Programs do not get the peak of a data sheet. What they get comes from measurements of others, or is assumed:

- `copy` is 0.9 of the peak bandwidth of DRAM, assumed for all.
- Latencies of an idle GPU are those of Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture via
  Microbenchmarking" (arXiv 2402.13499): about 260 cycles for L2 and 480 for DRAM on an H100, 260 and 470 on an A100,
  270 and 540 on an RTX 4090. In use, requests also wait in queues. So the model has twice the idle latency of L2, and
  2.5 times the idle latency of DRAM. Both factors are assumed. B200 has the latencies of H200, since its idle latency
  of L2 is the same 150 ns (chipsandcheese.com, "Nvidia's B200: Keeping the CUDA Juggernaut Rolling"). RTX 5090 has
  the latencies of RTX 4090, which is a guess.
- `l2_copy` comes from chipsandcheese.com: "Nvidia's H100: Funny L2, and Tons of Bandwidth" (5.5 to 6 TB/s on the H100
  PCIe, whose 114 multiprocessors make it 7 TB/s for 132), and "Microbenchmarking Nvidia's RTX 4090" (5 TB/s). A100's L2
  delivers 5120 bytes a cycle (white paper); two thirds of it are assumed. B200 and RTX 5090 are scaled by the number of
  multiprocessors, which is a guess.
- `gap` is assumed. In a CUDA graph, small kernels follow each other with 0.5 µs between them (NVIDIA's blog, "Getting
  Started with CUDA Graphs"). 2 µs are added for large kernels, whose last programs leave parts of the GPU idle.
"""

from __future__ import annotations

from dataclasses import dataclass

_GB, _KIB, _MIB = 10**9, 2**10, 2**20


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU. Times are in seconds, sizes in bytes, rates in bytes or FLOP a second."""

    name: str
    generation: int
    """The compute capability of the machine code that is counted for it: 90 for sm_90. An RTX 4090 (sm_89) runs the
    code of sm_80."""
    multiprocessors: int
    memory: int
    copy: float
    """Rate of a large copy in DRAM. Read and written bytes count together."""
    l2: int
    l2_copy: float
    """Rate of reads from L2."""
    dram_latency: float
    l2_latency: float
    bfloat16: float
    """Peak FLOP/s of dense products of bfloat16 that are summed in float32."""
    tf32: float
    float32: float
    clock: float
    """Cycles a second of a multiprocessor under load: the boost clock of the data sheet."""
    shared: int = 228 * _KIB
    """Shared memory of a multiprocessor. The system takes 1 KiB of it for each program."""
    threads: int = 2048
    """Threads of a multiprocessor."""
    programs: int = 32
    """Programs of a multiprocessor, at most."""
    registers: int = 65536
    """Registers of a multiprocessor. A warp gets them in steps of 8 a thread."""
    schedulers: int = 4
    """Warps of a multiprocessor that issue an instruction in the same cycle."""
    gap: float = 2.5e-6
    """Time between two kernels."""


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            name="A100",
            generation=80,
            multiprocessors=108,
            memory=80 * _GB,
            copy=0.9 * 2.039e12,
            l2=40 * _MIB,
            l2_copy=4.8e12,
            dram_latency=830e-9,
            l2_latency=370e-9,
            bfloat16=312e12,
            tf32=156e12,
            float32=19.5e12,
            clock=1.41e9,
            shared=164 * _KIB,
        ),
        Gpu(
            name="H100",
            generation=90,
            multiprocessors=132,
            memory=80 * _GB,
            copy=0.9 * 3.35e12,
            l2=50 * _MIB,
            l2_copy=7e12,
            dram_latency=700e-9,
            l2_latency=300e-9,
            bfloat16=989e12,
            tf32=495e12,
            float32=67e12,
            clock=1.755e9,
        ),
        Gpu(
            name="H200",
            generation=90,
            multiprocessors=132,
            memory=141 * _GB,
            copy=4.3e12,
            l2=50 * _MIB,
            l2_copy=7e12,
            dram_latency=700e-9,
            l2_latency=300e-9,
            bfloat16=989e12,
            tf32=495e12,
            float32=67e12,
            clock=1.755e9,
        ),
        Gpu(
            name="RTX 4090",
            generation=80,
            multiprocessors=128,
            memory=24 * _GB,
            copy=0.9 * 1.008e12,
            l2=72 * _MIB,
            l2_copy=5e12,
            dram_latency=540e-9,
            l2_latency=220e-9,
            bfloat16=165e12,
            tf32=82.6e12,
            float32=82.6e12,
            clock=2.52e9,
            shared=100 * _KIB,
            threads=1536,
            programs=24,
        ),
        Gpu(
            name="RTX 5090",
            generation=120,
            multiprocessors=170,
            memory=32 * _GB,
            copy=0.9 * 1.792e12,
            l2=96 * _MIB,
            l2_copy=6.6e12,
            dram_latency=540e-9,
            l2_latency=220e-9,
            bfloat16=209.5e12,
            tf32=104.8e12,
            float32=104.8e12,
            clock=2.41e9,
            shared=100 * _KIB,
            threads=1536,
            programs=24,
        ),
        Gpu(
            name="B200",
            generation=100,
            multiprocessors=148,
            memory=180 * _GB,
            copy=0.9 * 8e12,
            l2=126 * _MIB,
            l2_copy=7.8e12,
            dram_latency=700e-9,
            l2_latency=300e-9,
            bfloat16=2250e12,
            tf32=1125e12,
            float32=75e12,
            clock=1.965e9,
        ),
    )
}
"""Name → GPU."""


def known(name: str, multiprocessors: int, memory: int) -> Gpu | None:
    """Return the GPU of `GPUS` that a device is, or None.

    A name does not tell: PCIe and laptop models share it with larger ones. So multiprocessors and bytes of memory must
    agree, too. A driver reports up to a tenth more or less memory than the data sheet.
    """
    for gpu in GPUS.values():
        alike = gpu.name in name and gpu.multiprocessors == multiprocessors
        if alike and abs(memory - gpu.memory) < gpu.memory / 10:
            return gpu
    return None
