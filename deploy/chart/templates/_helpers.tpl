{{- define "policyd.fullname" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "policyd.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "policyd.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "policyd.image" -}}
{{- $repository := required "image.repository is where the image of deploy/Containerfile was pushed to" .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* The labels that select the pods of a component: (list $ "policyd") or (list $ "gateway"). */}}
{{- define "policyd.selector" -}}
{{- $top := index . 0 -}}
app.kubernetes.io/name: policyd
app.kubernetes.io/instance: {{ $top.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "policyd.labels" -}}
{{- $top := index . 0 -}}
{{ include "policyd.selector" . }}
app.kubernetes.io/version: {{ $top.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $top.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $top.Chart.Name $top.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Helm fails at values with which a server would not start, and says what to set. */}}
{{- define "policyd.check" -}}
{{- $ := . -}}
{{- if not (or .Values.tls.existingSecret .Values.insecure) -}}
{{- fail "policyd serves beyond its pod: give tls.existingSecret, or insecure=true where a mesh encrypts" -}}
{{- end -}}
{{- if and .Values.tls.clientCa (not .Values.tls.existingSecret) -}}
{{- fail "tls.clientCa needs tls.existingSecret, whose ca.crt callers' certificates have to be of" -}}
{{- end -}}
{{- if not (or .Values.callerToken.existingSecret .Values.tls.clientCa .Values.insecure) -}}
{{- fail "policyd authenticates its callers: give callerToken.existingSecret or tls.clientCa, or insecure=true" -}}
{{- end -}}
{{- if and .Values.gateway.enabled (not (or .Values.gateway.tls.existingSecret .Values.gateway.insecure)) -}}
{{- fail "clients send the gateway their API keys: give gateway.tls.existingSecret, or gateway.insecure=true where an Ingress or a mesh encrypts" -}}
{{- end -}}
{{- end -}}

{{/* policyd's --config. */}}
{{- define "policyd.config" -}}
{{- $made := dict
  "grpc" "0.0.0.0:50051"
  "admin" "0.0.0.0:50052"
  "http" "0.0.0.0:8082"
  "metrics" "0.0.0.0:9464"
  "workers" .Values.policyd.workers
  "default-mode" .Values.policyd.defaultMode
  "drain" .Values.policyd.drain
  "grace" .Values.policyd.grace
  "spool" "/var/lib/policyd/spool"
  "spool-limit" (.Values.policyd.spool.limit | int64)
  "admin-token-file" "/etc/policyd/admin/token"
-}}
{{- if .Values.policyd.console.enabled -}}
{{- $_ := set $made "console" "0.0.0.0:8081" -}}
{{- with .Values.policyd.console.url }}{{ $_ := set $made "console-url" . }}{{ end -}}
{{- end -}}
{{- if .Values.callerToken.existingSecret -}}
{{- $_ := set $made "caller-token-file" "/etc/policyd/caller/token" -}}
{{- end -}}
{{- if .Values.tls.existingSecret -}}
{{- $_ := set $made "tls-cert" "/etc/policyd/tls/tls.crt" -}}
{{- $_ := set $made "tls-key" "/etc/policyd/tls/tls.key" -}}
{{- if .Values.tls.clientCa }}{{ $_ := set $made "tls-client-ca" "/etc/policyd/tls/ca.crt" }}{{ end -}}
{{- end -}}
{{- if .Values.insecure }}{{ $_ := set $made "insecure" true }}{{ end -}}
{{- mergeOverwrite $made (deepCopy .Values.policyd.config) | toYaml -}}
{{- end -}}

{{/* The gateway's --config. */}}
{{- define "policyd.gatewayConfig" -}}
{{- $made := dict
  "listen" "0.0.0.0:8080"
  "metrics" "0.0.0.0:9465"
  "policyd" (printf "%s.%s.svc:50051" (include "policyd.fullname" .) .Release.Namespace)
  "upstream" .Values.gateway.upstream
  "workers" .Values.gateway.workers
  "drain" .Values.gateway.drain
  "grace" .Values.gateway.grace
-}}
{{- if ne .Values.gateway.streamGrace nil }}{{ $_ := set $made "stream-grace" .Values.gateway.streamGrace }}{{ end -}}
{{- if .Values.tls.existingSecret -}}
{{- $_ := set $made "policyd-tls" true -}}
{{- $_ := set $made "policyd-ca" "/etc/policyd/tls/ca.crt" -}}
{{- if .Values.tls.clientCa -}}
{{- $_ := set $made "policyd-cert" "/etc/policyd/tls/tls.crt" -}}
{{- $_ := set $made "policyd-key" "/etc/policyd/tls/tls.key" -}}
{{- end -}}
{{- end -}}
{{- if .Values.callerToken.existingSecret -}}
{{- $_ := set $made "policyd-token-file" "/etc/policyd/caller/token" -}}
{{- end -}}
{{- if .Values.gateway.upstreamApiKey.existingSecret -}}
{{- $_ := set $made "upstream-api-key-file" "/etc/policyd/upstream/key" -}}
{{- end -}}
{{- if .Values.gateway.tls.existingSecret -}}
{{- $_ := set $made "tls-cert" "/etc/policyd/listen/tls.crt" -}}
{{- $_ := set $made "tls-key" "/etc/policyd/listen/tls.key" -}}
{{- end -}}
{{- if .Values.gateway.insecure }}{{ $_ := set $made "insecure" true }}{{ end -}}
{{- mergeOverwrite $made (deepCopy .Values.gateway.config) | toYaml -}}
{{- end -}}

{{- define "policyd.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
# This group can read secrets and volumes.
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "policyd.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* A volume of one Secret, as (dict "name" … "secret" … "items" (dict KEY FILE)). */}}
{{- define "policyd.secretVolume" -}}
- name: {{ .name }}
  secret:
    secretName: {{ .secret }}
    # For this group only: policyd refuses a token that others may read.
    defaultMode: 0440
    {{- with .items }}
    items:
      {{- range $key, $file := . }}
      - {key: {{ $key | quote }}, path: {{ $file }}}
      {{- end }}
    {{- end }}
{{- end -}}

{{/* Of a pod of a component: (list $ "gateway" .Values.gateway). */}}
{{- define "policyd.scheduling" -}}
{{- $top := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index . 2 -}}
{{- if $top.Values.topologySpread.enabled }}
topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: {{ $top.Values.topologySpread.whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "policyd.selector" (list $top $component) | nindent 8 }}
  {{- end }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
