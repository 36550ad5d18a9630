"""Submission to a cluster. Start with `submit`: it plans arrays of jobs and sends them; `work` is what a job does, and
`status` and `control` look after what was sent, by the log in `submissions`."""
