"""Teaches schemathesis that a PEM file is text."""

import schemathesis

schemathesis.serializer.alias("application/x-pem-file", "text/plain")
