"""Where a training step's time, arithmetic, bytes and memory go, and what this machine could do at best.

Read in this order: parts (how operations are told apart), workload (the step that is watched), then who watches it:
times, counts, memory; machine (what it could do), summary (all together). `measure` makes the objects of a training
run, as `Trainer` does, and takes steps of five kinds, one after the other: warm-up; steps that are only timed; steps
under torch.profiler; one whose operations are counted, uncompiled; one whose memory is watched. A CUDA graph is only
timed: the other steps do the same without.

Every operation belongs to one *part*, by its name (`part_of`), or where it has no name of its own by where it runs: in
a network or in a backward it is one of the "rest of the networks". And it belongs to the generators, to the
discriminators, or to neither; in a backward, to whatever its forward belonged to.

- *Time*: on the CPU, self time of every operation in the profiled steps, which adds up to their duration; what Python
  does between operations is "other". On a GPU, durations of kernels and copies; "idle" is what the duration of a step
  without the profiler leaves, negative where kernels run beside each other.
- *FLOP*: of convolutions and matrix products, by torch's formulas (`torch.utils.flop_counter`): 2 for a multiplication
  and its addition. As executed: what is recomputed counts again.
- *Bytes* that must be moved: convolutions and our own operations read each tensor that they need once and write each
  result once, so a norm makes five passes: forward x → y, backward ∂L/∂y, y → ∂L/∂x. An optimiser reads and writes
  parameters and state and reads gradients; an average reads and writes itself and reads the weights. The rest of the
  networks must move nothing: all of it could be part of what comes before or after.
- *Floor*: an operation takes as long as its FLOP at the best rate of a matrix product or convolution in the type of the
  networks, or as its bytes at the speed of a large copy, whichever is longer. A part takes the sum over its operations.
- *Launches*: on a GPU, kernels, copies and fills; on the CPU, operations that are dispatched and are not views.
- *Memory*: on a GPU, the most that is allocated in each phase. On the CPU, the most that autograd keeps for the
  backward, parameters left out.
"""

from vologan_fast.profiling.summary import Part, Profile, measure

__all__ = ["Part", "Profile", "measure"]
