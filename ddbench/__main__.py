"""`python -m ddbench`, the command line as a module: `torchrun --nproc-per-node 2 -m ddbench run ...`."""

from ddbench.cli import main

if __name__ == "__main__":
    main()
