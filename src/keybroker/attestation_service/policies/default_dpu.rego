# The attestation policy for NVIDIA BlueField DPUs.
#
# `input` holds the claims of one device under the name of its kind. The values of the trust claims
# are those of draft-ietf-rats-ar4si, section 2.3; default_cpu.rego explains the ones used here.
#
# Evidence is a DICE certificate chain; its firmware layers are hashed into one value.

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
	input["nvidia-dpu"]
	input["nvidia-dpu"].accumulated_fwid in query_reference_value("nvidia_dpu_fwid")
}

hardware := 2 if {
	input["nvidia-dpu"]
	input["nvidia-dpu"].device_class in query_reference_value("nvidia_dpu_device_class")
}

configuration := 3 if {
	input["nvidia-dpu"]
	input["nvidia-dpu"].firmware_layers_count in query_reference_value("nvidia_dpu_firmware_layers")
}
