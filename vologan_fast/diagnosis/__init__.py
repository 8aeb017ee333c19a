"""What works on this machine, and why the rest does not. The command is `vologan_fast/doctor.py`.

Read `finding` first. `probes` has a function for each part of the machine and of the project, which looks at it, and
where it can, uses it. `isolated` runs them in other processes, because a broken library can end its process. Therefore
no module here imports torch at its top.
"""
