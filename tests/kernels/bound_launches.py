"""Checks of `planned_triton.py` with Triton itself, and not its interpreter. `test_planned.py` runs this script.

Triton decides which kernel a launch needs, as for a GPU. But it compiles none: each gets a number instead. A stand-in
for the launcher keeps what Triton or a bound launch gives it. The script prints a JSON object: the error of each check,
or null.
"""

import contextlib
import gc
import json
import random
import sys
import traceback
import weakref
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from triton import compiler, knobs
from triton.compiler import CompiledKernel

sys.path.append(str(Path(__file__).parents[2] / "bench"))
import host_cost
from vologan_kernels import launch, planned_triton
from vologan_kernels.adversarial_loss import kernels as adversarial_loss
from vologan_kernels.instance_norm import kernels as instance_norm
from vologan_kernels.nadam import kernels as nadam
from vologan_kernels.pixel_loss import kernels as pixel_loss
from vologan_kernels.spectral_norm import kernels as spectral_norm

MODULES = (instance_norm, pixel_loss, adversarial_loss, spectral_norm, nadam)
LAUNCHED = []


class Launcher:
    """Keeps the launches, and calls the hooks of a profiler, as the real one does."""

    def __init__(self, source, metadata):
        self.name = source.fn.__name__

    def __call__(self, *arguments):
        x, y, z, stream, function, packed, metadata, entered, left, *rest = arguments
        LAUNCHED.append((self.name, (x, y, z), stream, function, packed, like(rest)))
        for hook in (entered, left):
            if hook is not None:
                hook(metadata)


def compiled(source, target, options):
    """In place of `triton.compile`: a kernel with the attributes that a launch reads."""
    kernel = CompiledKernel.__new__(CompiledKernel)
    kernel.src, kernel.name, kernel.hash, kernel.kernel = source, source.fn.__name__, "", b""
    kernel.metadata = SimpleNamespace(shared=0, num_warps=options["num_warps"], tmem_size=None)
    kernel.packed_metadata = tuple(options.values())
    kernel.metadata_group, kernel.module, kernel.function, kernel._run = {}, None, None, None
    return kernel


def like(argument):
    """What two launches with other tensors have in common."""
    if isinstance(argument, torch.Tensor):
        return argument.dtype, tuple(argument.shape), argument.stride(), argument.data_ptr() % 16
    if isinstance(argument, (tuple, list)):
        return [like(part) for part in argument]
    return argument


def launches(call):
    LAUNCHED.clear()
    call()
    return list(LAUNCHED)


def calls():
    """Forwards and backwards of every operation, by name."""
    for row in host_cost.rows():
        for direction, call in (("forward", row.forward), ("backward", row.backward)):
            if call is not None:
                yield f"{row.name}, {direction}", call


def norms_of_batches():
    """A batch of small planes, and one of large planes, also in one launch."""
    for size, one_launch in ((8, False), (256, False), (256, True)):
        x = torch.zeros(2, 16, size, size)

        def call(x=x, one_launch=one_launch):
            launch.ONE_LAUNCH, before = one_launch, launch.ONE_LAUNCH
            try:
                options = "relu", 0.0, 0, 0.0
                _, mean, rstd = instance_norm.forward(x, *[None] * 4, 1e-3, *options)
                instance_norm.backward(x, x, mean, rstd, *[None] * 4, *options, False)
            finally:
                launch.ONE_LAUNCH = before

        yield f"a batch of {size}² planes, ONE_LAUNCH {one_launch}", call


def is_tritons_own(name, call):
    planned_triton.forget_plans()
    own = launches(call)
    bound = launches(call)
    assert bound == own, f"{name}: a bound launch gives the launcher {bound}, Triton's own {own}"
    return own


# ---- checks ---------------------------------------------------------------------------------------------------------


def a_bound_launch_gives_the_launcher_what_tritons_own_gives():
    seen = {one[0] for name, call in (*calls(), *norms_of_batches()) for one in is_tritons_own(name, call)}
    kernels = {name for module in MODULES for name in vars(module) if name.endswith("_kernel")}
    assert seen == kernels, f"not launched: {kernels - seen}"


def with_an_unknown_triton_too():
    known, planned_triton.LAUNCHERS = planned_triton.LAUNCHERS, ("0.",)
    try:
        for name, call in calls():
            is_tritons_own(name, call)
    finally:
        planned_triton.LAUNCHERS = known


def hooks_of_profilers_see_every_launch():
    for name, call in calls():
        unseen = [one[0] for one in launches(call)]
        seen = []

        def hook(metadata, seen=seen):
            seen.append(metadata.get()["name"])

        for chain in (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook):
            chain.add(hook)
            call()
            chain.remove(hook)
            assert seen == unseen, f"{name}: hooks saw {seen} of {unseen}"
            seen.clear()
        assert [one[0] for one in launches(call)] == unseen


def no_call_launches_what_another_one_should():
    """A random sequence of norms, each as its first call alone would launch it."""
    draw = random.Random(0)

    def tensor(shape, dtype, layout, offset):
        values = torch.zeros(offset + torch.Size(shape).numel(), dtype=dtype)[offset:]
        return (
            values.view(shape)
            if layout == "contiguous"
            else values.view(*shape[:1], *shape[2:], shape[1]).movedim(-1, 1)
        )

    def norm():
        shape = draw.choice([(1, 16, 8, 8), (2, 16, 8, 8), (1, 16, 8, 9), (1, 16, 256, 256)])
        dtype = draw.choice([torch.bfloat16, torch.float32])
        layout = draw.choice(["contiguous", "channels_last"])
        images = [tensor(shape, dtype, layout, draw.choice([0, 0, 8, 1])) for _ in range(2)]
        vectors = [
            tensor((16,), draw.choice([torch.float32, torch.bfloat16]), "contiguous", draw.choice([0, 0, 1]))
            if draw.random() < 0.7
            else None
            for _ in range(2)
        ]
        activation, pad = draw.choice(["relu", "leaky_relu"]), draw.choice([0, 1])
        residual = draw.choice([None, images[1]])
        options = activation, draw.choice([0.1, 0.2]), pad, draw.choice([0.0, 0.5])
        eps = draw.choice([1e-3, 1e-5])

        def call():
            y, mean, rstd = instance_norm.forward(images[0], *vectors, None, residual, eps, *options)
            instance_norm.backward(y, images[0], mean, rstd, *vectors, None, residual, *options, False)

        return call

    norms = [norm() for _ in range(150)]
    warm = [launches(draw.choice(norms)) and launches(call) for call in norms for _ in range(2)][1::2]
    for i, call in enumerate(norms):
        planned_triton.forget_plans()
        alone = launches(call)
        assert warm[i] == alone, f"call {i} launched {warm[i]}, but alone it launches {alone}"


def an_address_that_is_no_multiple_of_16_gets_a_kernel_of_its_own():
    values = torch.zeros(1 + 16 * 64, dtype=torch.bfloat16)
    here, there = values[:-1].view(1, 16, 8, 8), values[1:].view(1, 16, 8, 8)
    options = None, None, None, None, 1e-3, "relu", 0.0, 0, 0.0
    functions = [launches(lambda x=x: instance_norm.forward(x, *options))[0][3] for x in (here, there, here, there)]
    assert functions[:2] == functions[2:]
    assert functions[0] != functions[1]


def each_device_has_its_own_plans():
    for device in ("cpu", "meta", "cpu"):
        x = torch.zeros(1, 16, 8, 8, device=device)
        y, mean, rstd = instance_norm.forward(x, *[None] * 4, 1e-3, "relu", 0.0, 0, 0.0)
        gradients = instance_norm.backward(x, x, mean, rstd, *[None] * 4, "relu", 0.0, 0, 0.0, False)
        assert {tensor.device.type for tensor in (y, mean, rstd, *gradients[:3])} == {device}


def plans_keep_no_tensor():
    def alive():
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    planned_triton.forget_plans()
    x = nn.Parameter(torch.zeros(2, 16, 8, 8))
    before = alive()
    for count in range(3):
        inputs = [torch.zeros(2, 16, 8, 8 + count) for _ in range(3)]
        known = [weakref.ref(tensor) for tensor in inputs]
        y, mean, rstd = instance_norm.forward(inputs[0], None, None, None, inputs[1], 1e-3, "relu", 0.0, 0, 0.0)
        instance_norm.backward(inputs[2], inputs[0], mean, rstd, *[None] * 3, inputs[1], "relu", 0.0, 0, 0.0, False)
        loss, _, moments = pixel_loss.forward(inputs[:1], inputs[1:2], [], [1.0] * 48, False)
        pixel_loss.backward(loss, inputs[:1], inputs[1:2], [], [1.0] * 48, moments, False, True)
        loss, _ = adversarial_loss.forward(inputs, [0, 1, 2], [1.0] * 3, "lsgan")
        adversarial_loss.backward(loss, inputs, [0, 1, 2], [1.0] * 3, "lsgan")
        del inputs, y, mean, rstd, loss, moments
        assert not [tensor for tensor in known if tensor() is not None], "a plan keeps a tensor"
    del x
    assert alive() <= before + 8, "tensors have become more: only weights of losses may be kept"


def a_stand_in_gets_the_launches_of_a_kernel_that_was_bound():
    x = torch.zeros(1, 16, 8, 8)
    options = None, None, None, None, 1e-3, "relu", 0.0, 0, 0.0
    for _ in range(2):
        instance_norm.forward(x, *options)
    kernel, seen = instance_norm.single_fwd_kernel, []

    class StandIn:
        def __getitem__(self, grid):
            return lambda *arguments, **options: seen.append(grid)

    instance_norm.single_fwd_kernel = StandIn()
    try:
        assert launches(lambda: instance_norm.forward(x, *options)) == []
    finally:
        instance_norm.single_fwd_kernel = kernel
    assert len(seen) == 1
    assert len(launches(lambda: instance_norm.forward(x, *options))) == 1


CHECKS = (
    a_bound_launch_gives_the_launcher_what_tritons_own_gives,
    with_an_unknown_triton_too,
    hooks_of_profilers_see_every_launch,
    no_call_launches_what_another_one_should,
    an_address_that_is_no_multiple_of_16_gets_a_kernel_of_its_own,
    each_device_has_its_own_plans,
    plans_keep_no_tensor,
    a_stand_in_gets_the_launches_of_a_kernel_that_was_bound,
)

if __name__ == "__main__":
    host_cost.pretend_a_gpu(Launcher)
    compiler.compile = compiled
    errors = {}
    for check in CHECKS:
        errors[check.__name__] = None
        with contextlib.redirect_stdout(sys.stderr):
            try:
                check()
            except Exception:  # whatever it is, the test shows it
                errors[check.__name__] = traceback.format_exc()
    print(json.dumps(errors))
