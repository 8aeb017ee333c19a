"""A training step's time, arithmetic, bytes and memory, compared with the best that this machine can do.

Read the modules that measure in this order:

- `parts`: the parts of a step that operations are assigned to;
- `workload`: the training step to measure;
- `times`, `counts`, `memory`: the measurements;
- `machine`: the best speeds of this machine;
- `summary`: the whole profile.

These modules model a GPU that need not be there. `estimate` begins with its own definition:

- `launches`, `compiled`, `machine_code`: the launches of the kernels, and what their machine code has in flight;
- `gpus`, `launch_model`, `norm_work`: the time of a launch by a model;
- `plain_networks`, `plain_losses`, `step_counts`: a step counted on meta tensors, ours and as other GAN code has it;
- `estimate`: time and memory of a run.

`summary.measure` makes the objects of a training run, as `Trainer` does. Then it takes steps of five kinds, in turn:

1. steps to warm up;
2. steps that are only timed;
3. steps under torch.profiler;
4. an uncompiled step whose operations are counted;
5. a step whose memory is watched.

If the step is a CUDA graph, the graph is used in the first two kinds only. The others run the same work without it.

Every operation belongs to one *part*. The name of the operation decides (`part_of`). If the name has no part, the
place decides: such operations in a network or in a backward belong to "rest of the networks". The parts of options,
such as CUT's projector, hold their backwards, too. A step without such an option lacks the part. Every operation also
belongs to the generators, to the discriminators, or to neither. A backward belongs to the same networks as its forward.

- *Time*: on the CPU, the self time of all operations in the profiled steps. It adds up to the duration of the steps.
  Python's time between operations is "other". On a GPU, the durations of kernels and copies. There, "idle" is the
  duration of a step without the profiler, minus all other parts. It is negative if kernels run in parallel.
- *FLOP*: the arithmetic of convolutions and matrix products, by torch's formulas (`torch.utils.flop_counter`). A
  multiplication with its addition counts as 2. Recomputed operations count again.
- *Bytes*: the memory traffic that is necessary. Convolutions and the kernels of this project read each tensor that they
  need once, and write each result once. So a norm makes five passes: forward x → y, backward ∂L/∂y, y → ∂L/∂x. An
  optimiser reads and writes parameters and state, and reads gradients. An average reads and writes itself, and reads
  the weights. The rest of the networks counts 0 bytes, because it could be fused with the operations before or after.
- *Floor*: the shortest possible time of an operation, which is the longer one of two times. One is the time for its
  FLOP at the best rate of a matrix product or convolution in the type of the networks. The other is the time for its
  bytes at the speed of a large copy. The floor of a part is the sum over its operations.
- *Launches*: on a GPU, the number of kernels, copies and fills. On the CPU, the number of dispatched operations that
  are not views.
- *Memory*: on a GPU, the most bytes that are allocated in each phase. On the CPU, the most bytes that autograd keeps
  for the backward, without the parameters.
"""
