{{/* The operator's environment: every variable of settings.py, then the credentials of its own store client. */}}
{{- define "fusechat.env" -}}
- name: FUSECHAT_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: FUSECHAT_IDENTITY
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
{{- with .Values.watchNamespaces }}
- {name: FUSECHAT_WATCH_NAMESPACES, value: {{ join "," . | quote }}}
{{- end }}
- {name: FUSECHAT_CLUSTER, value: {{ .Values.clusterName | quote }}}
{{- include "fusechat.env.store" . }}
- {name: FUSECHAT_IMAGE, value: {{ include "fusechat.image" (list . .Values.stages.image) | quote }}}
{{- with .Values.stages.images }}
- {name: FUSECHAT_IMAGES, value: {{ toJson . | quote }}}
{{- end }}
{{- with .Values.stages.pullSecrets }}
- {name: FUSECHAT_IMAGE_PULL_SECRETS, value: {{ join "," . | quote }}}
{{- end }}
- {name: FUSECHAT_IMAGE_PULL_POLICY, value: {{ .Values.stages.image.pullPolicy | quote }}}
{{- with .Values.stages.podAnnotations }}
- {name: FUSECHAT_POD_ANNOTATIONS, value: {{ toJson . | quote }}}
{{- end }}
- {name: FUSECHAT_RUN_AS, value: {{ int64 .Values.stages.runAs | quote }}}
- {name: FUSECHAT_SCRATCH_REQUESTS, value: {{ .Values.stages.scratchRequests | quote }}}
{{- with .Values.tuning }}
- {name: FUSECHAT_WORKERS, value: {{ int64 .workers | quote }}}
- {name: FUSECHAT_STORE_THREADS, value: {{ int64 .storeThreads | quote }}}
- {name: FUSECHAT_API_QPS, value: {{ .apiQps | quote }}}
- {name: FUSECHAT_API_BURST, value: {{ int64 .apiBurst | quote }}}
- {name: FUSECHAT_POLL_SECONDS, value: {{ .pollSeconds | quote }}}
- {name: FUSECHAT_QUEUE_SECONDS, value: {{ .queueSeconds | quote }}}
- {name: FUSECHAT_LEASE_SECONDS, value: {{ int64 .leaseSeconds | quote }}}
{{- end }}
- {name: FUSECHAT_HEALTH_PORT, value: {{ int64 .Values.ports.health | quote }}}
- {name: FUSECHAT_METRICS_PORT, value: {{ int64 .Values.ports.metrics | quote }}}
{{- range .Values.extraEnv }}
{{- if hasPrefix "FUSECHAT_" .name }}
{{- fail (printf "extraEnv: %s is the chart's own variable; set the value that it is made of" .name) }}
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "fusechat.env.store" -}}
{{- with .Values.store }}
{{- range $name, $value := dict
      "FUSECHAT_STORE" .uri
      "FUSECHAT_STORE_ENDPOINT" .endpoint
      "FUSECHAT_STORE_REGION" .region
      "FUSECHAT_STORE_SECRET" .secret
      "FUSECHAT_STORE_SERVICE_ACCOUNT" .serviceAccount }}
{{- with $value }}
- {name: {{ $name }}, value: {{ . | quote }}}
{{- end }}
{{- end }}
{{- with .operatorSecret }}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ . }}, key: AWS_ACCESS_KEY_ID}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ . }}, key: AWS_SECRET_ACCESS_KEY}}
- name: AWS_SESSION_TOKEN
  valueFrom: {secretKeyRef: {name: {{ . }}, key: AWS_SESSION_TOKEN, optional: true}}
{{- end }}
{{- end }}
{{- end }}
