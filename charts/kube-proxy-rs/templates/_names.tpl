{{- define "kube-proxy-rs.name" -}}
{{- default .Chart.Name .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "kube-proxy-rs.serviceAccountName" -}}
{{- default (include "kube-proxy-rs.name" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "kube-proxy-rs.configMapName" -}}
{{- default (include "kube-proxy-rs.name" .) .Values.existingConfigMap -}}
{{- end -}}

{{/* What a DaemonSet selects its pods by can never change; so nothing else goes in here. */}}
{{- define "kube-proxy-rs.selector" -}}
app.kubernetes.io/name: {{ include "kube-proxy-rs.name" . }}
{{- end -}}

{{- define "kube-proxy-rs.labels" -}}
{{ include "kube-proxy-rs.selector" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "kube-proxy-rs.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The configuration: what values say, and what this chart settles itself. */}}
{{- define "kube-proxy-rs.config" -}}
{{- $settled := dict
  "apiVersion" "kubeproxy.config.k8s.io/v1alpha1"
  "kind" "KubeProxyConfiguration"
  "mode" .Values.mode
  "clientConnection" (dict "kubeconfig" "/var/lib/kube-proxy/kubeconfig.conf") -}}
{{- toYaml (merge $settled (deepCopy .Values.config)) -}}
{{- end -}}

{{/* The address and port of a bind address such as 0.0.0.0:10256 or [::]:10256. */}}
{{- define "kube-proxy-rs.port" -}}
{{- regexFind "[0-9]+$" . -}}
{{- end -}}

{{- define "kube-proxy-rs.host" -}}
{{- regexReplaceAll ":[0-9]+$" . "" | trimPrefix "[" | trimSuffix "]" -}}
{{- end -}}

{{- define "kube-proxy-rs.args" -}}
- --config=/var/lib/kube-proxy/config.conf
- --hostname-override=$(NODE_NAME)
- --iptables-flavor={{ .Values.iptablesFlavor }}
- --v={{ .Values.verbosity }}
{{- with .Values.nodeReadinessTaint }}
- --node-readiness-taint={{ . }}
{{- end }}
{{- with .Values.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Whether NET_RAW is needed: legacy tables and rules that name sets open a raw socket; mode nftables runs no tool. Which mode
another ConfigMap has is not known here. */}}
{{- define "kube-proxy-rs.needsRaw" -}}
{{- $unknown := and .Values.existingConfigMap (not .Values.runAsUser) -}}
{{- $legacy := and (ne .Values.iptablesFlavor "nft") (ne .Values.mode "nftables") -}}
{{- if or $legacy (eq .Values.mode "ipvs") $unknown -}}
yes
{{- end -}}
{{- end -}}

{{/* What both containers have in common. */}}
{{- define "kube-proxy-rs.container" -}}
image: {{ include "kube-proxy-rs.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
command: [/usr/local/bin/kube-proxy-rs]
env:
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
volumeMounts:
- name: config
  mountPath: /var/lib/kube-proxy
  readOnly: true
- name: xtables-lock
  mountPath: /run/xtables.lock
- name: run
  mountPath: /run/kube-proxy-rs
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}
