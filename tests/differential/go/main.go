// Reads each body that comes as a line of JSON, and answers what each reader makes of it.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
)

type line struct {
	Kind string `json:"kind"`
	Type string `json:"type"`
	Body []byte `json:"body"`
}

type reader func(body []byte, kind string) ([]any, error)

var readers = map[string]map[string]reader{
	"json": {
		"go json struct": ofStruct, "go json map": ofMap, "go json stream": ofStream,
	},
	"form": {
		"go multipart": ofForm, "go http request": ofRequest,
	},
	"urlencoded": {
		"go url": ofQuery,
	},
}

func text(value any) any {
	if found, ok := value.(string); ok {
		return found
	}
	return nil
}

// ofStruct finds members in any letter case, as encoding/json does.
func ofStruct(body []byte, _ string) ([]any, error) {
	var object struct {
		User *any `json:"user"`
	}
	if err := json.Unmarshal(body, &object); err != nil {
		return nil, err
	}
	if object.User == nil {
		return []any{}, nil
	}
	return []any{text(*object.User)}, nil
}

func ofMap(body []byte, _ string) ([]any, error) {
	var object map[string]any
	if err := json.Unmarshal(body, &object); err != nil {
		return nil, err
	}
	return member(object), nil
}

// ofStream reads the first value only, and takes no notice of what follows.
func ofStream(body []byte, _ string) ([]any, error) {
	var object map[string]any
	if err := json.NewDecoder(bytes.NewReader(body)).Decode(&object); err != nil {
		return nil, err
	}
	return member(object), nil
}

func member(object map[string]any) []any {
	value, found := object["user"]
	if !found {
		return []any{}
	}
	return []any{text(value)}
}

func ofForm(body []byte, kind string) ([]any, error) {
	_, parameters, err := mime.ParseMediaType(kind)
	if err != nil {
		return nil, err
	}
	users := []any{}
	parts := multipart.NewReader(bytes.NewReader(body), parameters["boundary"])
	for {
		part, err := parts.NextPart()
		if errors.Is(err, io.EOF) {
			return users, nil
		}
		if err != nil {
			return nil, err
		}
		value, err := io.ReadAll(part)
		if err != nil {
			return nil, err
		}
		if part.FormName() == "user" && part.FileName() == "" {
			users = append(users, string(value))
		}
	}
}

func ofRequest(body []byte, kind string) ([]any, error) {
	request := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
	request.Header.Set("Content-Type", kind)
	if err := request.ParseMultipartForm(64 << 20); err != nil {
		return nil, err
	}
	users := []any{}
	for _, value := range request.MultipartForm.Value["user"] {
		users = append(users, value)
	}
	return users, nil
}

func ofQuery(body []byte, _ string) ([]any, error) {
	fields, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, err
	}
	asked := []any{}
	for _, name := range []string{"model", "messages", "prompt", "input", "image"} {
		if fields.Has(name) {
			asked = append(asked, name)
		}
	}
	return asked, nil
}

func main() {
	lines := bufio.NewReader(os.Stdin)
	answers := json.NewEncoder(os.Stdout)
	for {
		given, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var asked line
		if err := json.Unmarshal(given, &asked); err != nil {
			panic(err)
		}
		answer := map[string][]any{}
		for name, read := range readers[asked.Kind] {
			users, err := read(asked.Body, asked.Type)
			if err != nil {
				users = nil
			}
			answer[name] = users
		}
		if err := answers.Encode(answer); err != nil {
			panic(err)
		}
	}
}
