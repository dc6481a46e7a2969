# The attestation policy for Hygon DCU accelerators.
#
# `input` holds the claims of one device under the name of its kind. The values of the trust claims
# are those of draft-ietf-rats-ar4si, section 2.3; default_cpu.rego explains the ones used here.
#
# The report verifies only under Hygon's root; the firmware that made it must be registered.

package policy

import rego.v1

trust_claims := {
	"executables": executables,
	"hardware": hardware,
	"configuration": configuration,
	"file-system": file_system,
	"instance-identity": instance_identity,
	"runtime-opaque": runtime_opaque,
	"storage-opaque": storage_opaque,
	"sourced-data": sourced_data,
}

default executables := 33

default hardware := 97

default configuration := 36

default file_system := 0

default instance_identity := 0

default runtime_opaque := 0

default storage_opaque := 0

default sourced_data := 0

executables := 3 if {
	input.hygondcu
	input.hygondcu.body.measure in query_reference_value("dcu_measure")
}

hardware := 2 if {
	input.hygondcu
	input.hygondcu.body.chip_id in query_reference_value("dcu_chip_id")
}

configuration := 3 if {
	input.hygondcu
	input.hygondcu.body.version in query_reference_value("dcu_firmware_version")
}
