"""Submission to a scheduler. Start with `submit`: it plans arrays of jobs and sends them to one of `schedulers`;
`job_runner` is what a job does, and `status` and `actions` look after what was sent, by the log in `submissions`."""
