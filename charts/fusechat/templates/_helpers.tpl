{{- define "fusechat.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{/* The name of all objects: the release's, with the chart's if it is not in it. */}}
{{- define "fusechat.fullname" -}}
{{- $name := include "fusechat.name" . }}
{{- $release := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- default $release .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "fusechat.serviceAccount" -}}
{{- $default := ternary (include "fusechat.fullname" .) "default" .Values.serviceAccount.create }}
{{- default $default .Values.serviceAccount.name }}
{{- end }}

{{- define "fusechat.selector" -}}
app.kubernetes.io/name: {{ include "fusechat.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "fusechat.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "fusechat.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* An image: (list $ .Values.image). */}}
{{- define "fusechat.image" -}}
{{- $root := index . 0 }}
{{- $image := index . 1 }}
{{- $image.repository }}{{ if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default $root.Chart.AppVersion $image.tag }}{{ end }}
{{- end }}
