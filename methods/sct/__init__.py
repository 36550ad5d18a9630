"""SCT, Salient Channel Tuning (arXiv 2309.08513): train a small map on the channels that matter most for the task."""
