"""Triton's interpreter, which runs kernels here, in half of its time."""

from __future__ import annotations

import inspect

import pytest


@pytest.fixture(scope="session", autouse=True)
def replaced_once():
    """Have it replace the builtins of Triton's language once a launch, not in every function that a kernel calls too."""
    try:
        import triton.language as tl
        from triton.runtime import interpreter
        from triton.runtime.interpreter import _LangPatchScope as Nothing
    except ImportError:  # also of a release that does it otherwise
        yield
        return
    replace, languages = interpreter._patch_lang, {}

    def replace_where_needed(function):
        if function not in languages:
            used = [value for value in function.__globals__.values() if inspect.ismodule(value)]
            languages[function] = [value for value in used if value in (tl, tl.core)]
        fresh = any(tl.core.is_builtin(language.load) for language in languages[function])
        return replace(function) if fresh else Nothing()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", replace_where_needed)
        yield
