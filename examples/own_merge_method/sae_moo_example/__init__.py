"""The row: what others need to know of the method. Importing it needs no torch."""

from sae_moo.recipe.methods import Method, Setting

MEDIAN = Method(
    name="median",
    step="sae_moo_example.median:median",
    settings={"scale": Setting(default=1.0, least=0, most=2, about="factor of the median's distance from the base")},
    weights="unused",
    reads_base=True,
    summary="the median of the inputs, element by element",
)
