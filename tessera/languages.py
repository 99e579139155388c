"""The languages that people may name: those that the family of speech models knows, however they are written.

A code is of two letters (ISO 639-1; ``haw`` and ``yue`` have three), or of three as containers write it (ISO 639-2,
both forms of it), and may have a region: ``en``, ``eng``, ``en-GB``.
"""

from __future__ import annotations

#: What the models know, by their own code, and how containers write it.
_KNOWN = """
af afr, am amh, ar ara, as asm, az aze, ba bak, be bel, bg bul, bn ben, bo tib bod, br bre, bs bos, ca cat,
cs cze ces, cy wel cym, da dan, de ger deu, el gre ell, en eng, es spa, et est, eu baq eus, fa per fas, fi fin,
fo fao, fr fre fra, gl glg, gu guj, ha hau, haw, he heb, hi hin, hr hrv, ht hat, hu hun, hy arm hye, id ind,
is ice isl, it ita, ja jpn, jw jv jav, ka geo kat, kk kaz, km khm, kn kan, ko kor, la lat, lb ltz, ln lin,
lo lao, lt lit, lv lav, mg mlg, mi mao mri, mk mac mkd, ml mal, mn mon, mr mar, ms may msa, mt mlt, my bur mya,
ne nep, nl dut nld, nn nno, no nor nb nob, oc oci, pa pan, pl pol, ps pus, pt por, ro rum ron, ru rus, sa san,
sd snd, si sin, sk slo slk, sl slv, sn sna, so som, sq alb sqi, sr srp, su sun, sv swe, sw swa, ta tam, te tel,
tg tgk, th tha, tk tuk, tl tgl, tr tur, tt tat, uk ukr, ur urd, uz uzb, vi vie, yi yid, yo yor, zh chi zho, yue
"""
#: Every spelling of each language, the models' own first.
SPELLINGS: dict[str, tuple[str, ...]] = {
    spellings[0]: spellings for spellings in (tuple(one.split()) for one in _KNOWN.split(","))
}
_CODES = {spelling: code for code, spellings in SPELLINGS.items() for spelling in spellings}


def code_of(language: str) -> str | None:
    """Return the code by which the models know a language (``EN-gb`` and ``eng`` are ``en``), or None."""
    return _CODES.get(language.strip().replace("_", "-").partition("-")[0].lower())
