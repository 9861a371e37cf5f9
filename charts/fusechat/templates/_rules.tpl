{{/*
What the operator may do where runs are: the calls of cluster.py and the watches of handlers.py, and no more
(tests/unit/test_chart.py compares them). It reads and copies no Secret.
*/}}
{{- define "fusechat.rules" -}}
- apiGroups: [fusechat.io]
  resources: [fusionruns]
  verbs: [get, list, watch]
- apiGroups: [fusechat.io]
  resources: [fusionruns/status]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [kubeflow.org]
  resources: [pytorchjobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [trainer.kubeflow.org]
  resources: [trainjobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [trainer.kubeflow.org]
  resources: [trainingruntimes] # what a TrainJob's Pods are; the garbage collector deletes it
  verbs: [create]
- apiGroups: [""]
  resources: [services] # where the ranks of an Indexed Job meet; the garbage collector deletes it
  verbs: [create]
- apiGroups: [""]
  resources: [pods] # why a step waits or failed
  verbs: [list]
- apiGroups: [""]
  resources: [events] # its own about runs; its children's, which say why no Pod comes
  verbs: [get, list, create, patch]
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads] # why a queued step waits
  verbs: [list]
{{- end }}
