"""Pure messages shared by all: ids, specs, facts and commands, views; JSON by `codec`, protobuf by `agent_pb2`."""
