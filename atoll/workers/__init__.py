"""The training session, the serving engine, and the processes that run them: agent, zygote, trainers."""
