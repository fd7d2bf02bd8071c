"""Files of dataset condensation: gradient matching (DC, DSA) and distribution matching (DM).

A `.pt` file from `torch.save({"data": [[images, labels], ...], "accs_all_exps": {...}})`, as written by `main.py` and
`main_DM.py` of https://github.com/VICO-UoE/DatasetCondensation. `data` has one pair per repetition of the experiment:
images `[n, channels, height, width]`, normalised by the dataset's mean and std, and labels `[n]` int64.
The accuracies in `accs_all_exps` are not read.
"""

from pathlib import Path

from ddbench.errors import UsageError
from ddbench.formats.released_set import ReleasedSet
from ddbench.formats.tensor_files import load


def read(path: Path, repetition: int = 0) -> ReleasedSet:
    """Read the pair number `repetition`. Raises `UsageError` where the file has no such pair."""
    content = load(path)
    repetitions = content.get("data") if isinstance(content, dict) else None
    if not isinstance(repetitions, list) or not repetitions:
        raise UsageError(f"{path} has no list of [images, labels] under 'data'.", "See: ddbench evaluate --help")
    if not 0 <= repetition < len(repetitions):
        raise UsageError(f"{path} holds {len(repetitions)} repetitions.", f"Give 0 to {len(repetitions) - 1}.")
    pair = repetitions[repetition]
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise UsageError(f"repetition {repetition} of {path} is not a pair [images, labels].", "Fetch the file again.")
    return ReleasedSet.checked(path, *pair)
