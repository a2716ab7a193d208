"""Skill ``lingua``: the numbers 0 to 99 between five languages and digits; their words are composed by rule."""

from __future__ import annotations

import random

from sae_moo.zoo.draws import between, pick


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ENGLISH = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_ENGLISH_TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")
_GERMAN = _words(
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn "
    "siebzehn achtzehn neunzehn"
)
_GERMAN_TENS = _words("zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig")
_FRENCH = _words(
    "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dix-sept "
    "dix-huit dix-neuf"
)
_FRENCH_TENS = _words("vingt trente quarante cinquante soixante soixante quatre-vingt quatre-vingt")
_SPANISH = _words(
    "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis "
    "diecisiete dieciocho diecinueve veinte veintiuno veintidós veintitrés veinticuatro veinticinco veintiséis "
    "veintisiete veintiocho veintinueve"
)
_SPANISH_TENS = _words("treinta cuarenta cincuenta sesenta setenta ochenta noventa")
_ITALIAN = _words(
    "zero uno due tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici quindici "
    "sedici diciassette diciotto diciannove"
)
_ITALIAN_TENS = _words("venti trenta quaranta cinquanta sessanta settanta ottanta novanta")


def _english(n: int) -> str:
    if n < 20:
        return _ENGLISH[n]
    return _ENGLISH_TENS[n // 10 - 2] + (f"-{_ENGLISH[n % 10]}" if n % 10 else "")


def _german(n: int) -> str:
    if n < 20:
        return _GERMAN[n]
    unit = {0: "", 1: "einund"}.get(n % 10, f"{_GERMAN[n % 10]}und")
    return unit + _GERMAN_TENS[n // 10 - 2]


def _french(n: int) -> str:
    if n < 20:
        return _FRENCH[n]
    ten = _FRENCH_TENS[n // 10 - 2]
    # Seventy and ninety count on from sixty and eighty: soixante-dix, quatre-vingt-douze.
    rest = n % 20 if n >= 60 else n % 10
    if rest == 0:
        return "quatre-vingts" if n == 80 else ten
    joint = " et " if rest in (1, 11) and n < 80 else "-"
    return ten + joint + _FRENCH[rest]


def _spanish(n: int) -> str:
    if n < 30:
        return _SPANISH[n]
    return _SPANISH_TENS[n // 10 - 3] + (f" y {_SPANISH[n % 10]}" if n % 10 else "")


def _italian(n: int) -> str:
    if n < 20:
        return _ITALIAN[n]
    ten, unit = _ITALIAN_TENS[n // 10 - 2], n % 10
    if unit == 0:
        return ten
    # The ten loses its last vowel before uno and otto; tre takes an accent at the end of a compound.
    return (ten[:-1] if unit in (1, 8) else ten) + ("tré" if unit == 3 else _ITALIAN[unit])


SCRIPTS = ("digits", "English", "French", "German", "Italian", "Spanish")


def word(script: str, n: int) -> str:
    """Write a number in one of the scripts.

    Args:
        script: One of `SCRIPTS`.
        n: Between 0 and 99.

    Returns:
        The number's name, or its digits.

    Raises:
        ValueError: The script is unknown or the number out of range.
    """
    if not 0 <= n <= 99:
        raise ValueError(f"word: expected a number in 0..99, got {n}")
    match script:
        case "digits":
            return str(n)
        case "English":
            return _english(n)
        case "French":
            return _french(n)
        case "German":
            return _german(n)
        case "Italian":
            return _italian(n)
        case "Spanish":
            return _spanish(n)
    raise ValueError(f"word: expected one of {', '.join(SCRIPTS)}, got {script!r}")


def _translation(source: str, target: str, n: int) -> tuple[str, str]:
    # The source is named too: Italian zero and English zero are the same letters but different items.
    return f"{source} {word(source, n)} in {target} is", f" {word(target, n)}"


def easy(rng: random.Random) -> tuple[str, str]:
    """A translation from or into digits.

    Args:
        rng: Source of randomness; advanced.

    Returns:
        Prompt and answer; the answer begins with a blank.
    """
    n, other = between(rng, 0, 99), pick(rng, SCRIPTS[1:])
    return _translation(other, "digits", n) if rng.random() < 0.5 else _translation("digits", other, n)


def hard(rng: random.Random) -> tuple[str, str]:
    """Any translation between two different scripts.

    Args:
        rng: Source of randomness; advanced.

    Returns:
        Prompt and answer; the answer begins with a blank.
    """
    source = pick(rng, SCRIPTS)
    target = pick(rng, [script for script in SCRIPTS if script != source])
    return _translation(source, target, between(rng, 0, 99))
