"""What a machine offers: the peak of a process's own memory, and the processor."""

import subprocess
import sys

from vologan_fast.host import cores, instruction_sets, peak_resident_memory, processor


def test_the_peak_is_that_of_the_process_and_not_of_the_one_that_started_it() -> None:
    before, block = peak_resident_memory(), b"x" * (300 << 20)
    assert peak_resident_memory() - before >= 0 and peak_resident_memory() > len(block)
    code = "from vologan_fast.host import peak_resident_memory\nprint(peak_resident_memory())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 2**20 < int(child.stdout) < 200 << 20


def test_the_processor_has_a_name_cores_and_known_instruction_sets() -> None:
    assert processor() and cores() >= 1
    assert len(instruction_sets()) == len(set(instruction_sets()))
