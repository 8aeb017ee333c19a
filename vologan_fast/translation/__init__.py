"""Use what was trained: translate images and files with the generator of a run.

- `translator.py`: `load` finds the weights and makes a `Translator`, an `nn.Module`.
- `foreign.py`: generators of the PyTorch CycleGAN and of CUT, with our names for their weights.
- `images.py`: one image in file units, through the network and back.
- `encoding.py`: images to the bytes of files, of the kind that came in.
- `deflated.py`: PNG and EXR, packed fast.
- `inputs.py`: the images of a data set, a folder or one file, and the names of their outputs.
- `job.py`: many files. It reads, translates and writes at the same time, and does nothing twice.
- `programs.py`: a translator as a file of `torch.export` or ONNX, which runs without this project.
- `model_folder.py` and `card.py`: weights, configuration and model card in one folder.
"""
