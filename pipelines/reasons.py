"""Why a clip can be rejected: a closed vocabulary, part of the documented interface.

A reason that is retryable may go away by itself; `build-dataset --retry-rejected` tries only those again.
HTTP statuses are reasons by their number (`http-404`); 408, 425, 429 and 5xx are retryable.
"""

import re

RETRYABLE = {
    "timeout": "the server did not finish within the deadline",
    "connection": "the connection was refused, reset or never made",
    "slow": "the transfer stayed under the lowest speed allowed",
    "rate-limited": "the site asked to slow down",
    "circuit-open": "the host failed too often and was left alone",
    "incomplete-body": "the server sent fewer bytes than it declared",
}

FINAL = {
    "too-large": "the file is larger than the limit",
    "forbidden-address": "the address is private, local or of cloud metadata",
    "robots": "the site's robots.txt asks not to fetch it",
    "bad-redirect": "a redirect led nowhere, in a circle or off http(s)",
    "unsupported-url": "the kind of address is not supported",
    "unavailable-video": "the video is private, removed or blocked",
    "bad-section": "the section's start or end is not a number of seconds, or ends before it begins",
    "missing-file": "the file does not exist or cannot be read",
    "bad-archive-member": "the archive member is unsafe or broken",
    "not-audio": "the content is not audio",
    "undecodable": "the audio is corrupt or of an unknown codec",
    "truncated": "fewer frames decode than 95 % of what the header declares",
    "decoder-crashed": "the decoder took its process down on this clip",
    "empty": "there are no bytes or no frames",
    "silent": "the peak is under the silence threshold",
    "too-short": "the clip is shorter than the limit",
    "too-long": "the clip is longer than the limit",
    "low-sample-rate": "the source's sample rate is under the limit",
    "no-caption": "there is neither a caption nor a label to make one from",
    "caption-length": "no caption has an allowed number of words",
    "language": "no caption is in an allowed language",
    "license": "the licence is not among those allowed",
    "duplicate": "another clip has the same bytes or the same samples",
    "near-duplicate": "another clip has nearly the same sound",
    "evaluation-overlap": "the clip belongs to an evaluation set, or is on the list of --exclude-ids",
    "low-score": "the caption fits the sound too badly",
}


def explain(reason: str) -> str:
    """The sentence behind a reason; raises KeyError for one outside the vocabulary."""
    if re.fullmatch(r"http-[45]\d\d", reason):
        return f"the server answered with status {reason[5:]}"
    return (RETRYABLE | FINAL)[reason]


def retryable(reason: str) -> bool:
    """Whether trying again later may help."""
    return reason in RETRYABLE or re.fullmatch(r"http-(408|425|429|5\d\d)", reason) is not None
