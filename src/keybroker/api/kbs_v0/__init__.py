"""The face of the Confidential Containers Key Broker Service, protocol 0.4.0."""
