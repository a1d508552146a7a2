"""Run a compiler and keep what it reports next to the object file, as OBJECT.txt: CMake's launcher of nvcc."""

import subprocess
import sys

command = sys.argv[1:]
done = subprocess.run(command, stderr=subprocess.PIPE, check=False)
sys.stderr.buffer.write(done.stderr)
if done.returncode == 0 and "-o" in command:
    with open(f"{command[command.index('-o') + 1]}.txt", "wb") as file:
        file.write(done.stderr)
sys.exit(done.returncode)
