"""BLIP (arXiv:2201.12086), complete: models for every task, their checkpoints, their training."""

from capfilt_blip.tasks.answerer import Answerer
from capfilt_blip.tasks.answers import Answer, ChosenAnswer
from capfilt_blip.tasks.captioner import Caption, Captioner
from capfilt_blip.tasks.features import FeatureExtractor
from capfilt_blip.tasks.grounder import Box, Grounder
from capfilt_blip.tasks.matcher import Matcher
from capfilt_blip.tasks.reasoner import Reasoner
from capfilt_blip.tasks.retriever import Retriever
from capfilt_blip.tasks.scoring import MatchScores

__all__ = [
    "Answer",
    "Answerer",
    "Box",
    "Caption",
    "Captioner",
    "ChosenAnswer",
    "FeatureExtractor",
    "Grounder",
    "MatchScores",
    "Matcher",
    "Reasoner",
    "Retriever",
]
