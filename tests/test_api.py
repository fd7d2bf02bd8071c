import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ddbench


def test_every_public_name_is_there_and_documented():
    for name in ddbench.__all__:
        assert getattr(ddbench, name) is not None
        assert name in dir(ddbench)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = ddbench.nonsense


def test_what_type_checkers_see_is_what_is_loaded():
    tree = ast.parse(Path(ddbench.__file__).read_text())
    imported = {
        alias.name: node.module.removeprefix("ddbench.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("ddbench.")
        for alias in node.names
    }
    assert imported == ddbench._HOME_OF


def test_importing_ddbench_is_light():
    code = "import sys, ddbench; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
