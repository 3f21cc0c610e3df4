"""GenEval: does an image show the objects, counts, colours and places of its prompt?

`rules` judges, `files` reads and writes, `evaluator` judges what a model draws.
"""

from fluid.evals.geneval.files import read_detections as read_detections
from fluid.evals.geneval.files import read_metadata as read_metadata
from fluid.evals.geneval.files import read_results as read_results
from fluid.evals.geneval.files import write_detections as write_detections
from fluid.evals.geneval.files import write_layout as write_layout
from fluid.evals.geneval.rules import COLORS as COLORS
from fluid.evals.geneval.rules import RELATIONS as RELATIONS
from fluid.evals.geneval.rules import TAGS as TAGS
from fluid.evals.geneval.rules import ColorClassifier as ColorClassifier
from fluid.evals.geneval.rules import Detector as Detector
from fluid.evals.geneval.rules import Objects as Objects
from fluid.evals.geneval.rules import add_colors as add_colors
from fluid.evals.geneval.rules import chance as chance
from fluid.evals.geneval.rules import colors_missing as colors_missing
from fluid.evals.geneval.rules import detect as detect
from fluid.evals.geneval.rules import judged as judged
from fluid.evals.geneval.rules import overall as overall
from fluid.evals.geneval.rules import relative_position as relative_position
from fluid.evals.geneval.rules import score as score
from fluid.evals.geneval.rules import summarize as summarize
