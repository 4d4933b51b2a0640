"""The symmetric contrastive loss over a batch of pairs (LAION-CLAP, section 2.2; CLIP).

transformers' ClapModel computes text-to-audio twice and never audio-to-text; this is both directions,
each with its own scale.
"""

import torch
from torch import Tensor


def positives(captions: Tensor, clips: Tensor) -> Tensor:
    """Which audio goes with which text, (batch, batch) boolean, the diagonal included.

    captions and clips (batch,) are identities: two rows with the same cleaned caption, or with the same
    clip, are not negatives of each other. Where they all differ this is the identity.
    """
    return (captions[:, None] == captions) | (clips[:, None] == clips)


def contrastive(audio: Tensor, text: Tensor, scale_a: Tensor, scale_t: Tensor, positive: Tensor) -> Tensor:
    """Mean of both directions' cross-entropy; the target is spread evenly over the positives of a row.

    audio and text (batch, d) L2-normalised; scale_a multiplies audio-to-text logits, scale_t text-to-audio;
    positive (batch, batch), row = audio, column = text. With the identity this is LAION's loss, to which
    both scales contribute. Computed in float32.
    """
    similarity = audio.float() @ text.float().T
    return (_towards(scale_a * similarity, positive) + _towards(scale_t * similarity.T, positive.T)) / 2


def _towards(logits: Tensor, positive: Tensor) -> Tensor:
    target = positive / positive.sum(dim=1, keepdim=True)
    return torch.nn.functional.cross_entropy(logits, target)
