# The attestation policy for the topology of a protected PCIe system.
#
# `input` holds the claims of one device under the name of its kind. The values of the trust claims
# are those of draft-ietf-rats-ar4si, section 2.3; default_cpu.rego explains the ones used here.
#
# This class appears in a result only where the GPUs and switches together form a valid topology, so
# its configuration is approved by being here. The single devices have submodules of their own.

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

default executables := 0

default hardware := 0

default configuration := 2

default file_system := 0

default instance_identity := 0

default runtime_opaque := 0

default storage_opaque := 0

default sourced_data := 0
