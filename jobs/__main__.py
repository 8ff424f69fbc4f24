"""`python -m jobs VERB job.toml`: the same command line, for Ray jobs."""

from jobs.cli import main

if __name__ == "__main__":
    main()
