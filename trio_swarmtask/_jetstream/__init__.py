# The broker on a NATS server with JetStream.

from ._broker import NATSBroker as NATSBroker, open_nats_broker as open_nats_broker
