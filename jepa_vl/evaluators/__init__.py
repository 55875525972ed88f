"""What frozen features, spectra and word maps say of a model."""

from jepa_vl.evaluators import attentive as attentive  # these register themselves
from jepa_vl.evaluators import captioning as captioning
from jepa_vl.evaluators import fast as fast
from jepa_vl.evaluators import fewshot as fewshot
from jepa_vl.evaluators import finetune as finetune
from jepa_vl.evaluators import grounding as grounding
from jepa_vl.evaluators import knn as knn
from jepa_vl.evaluators import lidar as lidar
from jepa_vl.evaluators import linear as linear
from jepa_vl.evaluators import reference as reference
from jepa_vl.evaluators import retrieval as retrieval
from jepa_vl.evaluators import segmentation as segmentation
from jepa_vl.evaluators import sentiment as sentiment
from jepa_vl.evaluators import vqa as vqa
from jepa_vl.evaluators.base import REGISTRY as REGISTRY
