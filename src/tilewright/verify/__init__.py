"""Verification: the numeric policy, the oracle check, and the fuzzers."""

from tilewright.verify.generate import random_inputs
from tilewright.verify.oracle import Report, check
from tilewright.verify.policy import Verdict, compare

__all__ = ["Report", "Verdict", "check", "compare", "random_inputs"]
