"""BLIP (arXiv:2201.12086): a captioner and a matcher for images and texts, and their training."""

from capfilt_blip.tasks.captioner import Caption, Captioner
from capfilt_blip.tasks.matcher import Matcher, MatchScores

__all__ = ["Caption", "Captioner", "MatchScores", "Matcher"]
