{{- define "kaito.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{/* The name of everything that the chart makes: the release's, unless that says "kaito" already. */}}
{{- define "kaito.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "kaito.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "kaito.selectorLabels" -}}
app.kubernetes.io/name: {{ include "kaito.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: controller
{{- end -}}

{{- define "kaito.labels" -}}
{{ include "kaito.selectorLabels" . }}
app.kubernetes.io/part-of: kaito
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{- define "kaito.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "kaito.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name: name the ServiceAccount, since serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "kaito.registry" -}}
{{- required "registry: name the container registry that you pushed kaito's images to, like registry.example.com/team" .Values.registry | trimSuffix "/" -}}
{{- end -}}

{{- define "kaito.image" -}}
{{- $repository := default (printf "%s/kaito" (include "kaito.registry" .)) .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "kaito.webhookService" -}}
{{- printf "%s-webhook" (include "kaito.fullname" .) -}}
{{- end -}}

{{- define "kaito.webhookSecret" -}}
{{- printf "%s-webhook-tls" (include "kaito.fullname" .) -}}
{{- end -}}

{{- define "kaito.instanceTypes" -}}
{{- printf "%s-instance-types" (include "kaito.fullname" .) -}}
{{- end -}}
