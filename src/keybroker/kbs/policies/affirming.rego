# Lets a guest pass only where the attestation service affirmed every device of it.
#
# An appraisal is `affirming` when each trust claim that the attestation policy makes is good; see
# the attestation policies for what they ask. A token that names no device at all is refused.

package policy

import rego.v1

default allow := false

allow if {
	count(input.submods) > 0
	not some_device_not_affirmed
}

some_device_not_affirmed if {
	some device in input.submods
	device["ear.status"] != "affirming"
}

# A device without a status has not been appraised at all.
some_device_not_affirmed if {
	some device in input.submods
	not device["ear.status"]
}
